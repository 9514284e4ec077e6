"""The record that each worker sends to all others when they agree: at the end of a step, or at a meeting of replicas.

A record says of everything in it which step and which shard it belongs to, so that it is read without knowing who
computes what:

    head       whether to stop, seconds, and the number of each of the following
    taken      steps that each replica of the worker has taken
    present    one byte per entry of the layout: whether a shard of the worker had a gradient for it
    facts      step, shard: loss sum, weight, whether it was a mean
    buffers    shard: one byte per buffer, whether the shard changed it; for other hosts also the changed ones
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from samestep.job.objective import LossFacts

HEAD = struct.Struct("<?dHIII")  # stop, seconds, and how many: steps taken, entries, facts, shards with buffers
TAKEN = struct.Struct("<q")
FACTS = struct.Struct("<QIdd?")
BUFFERS = struct.Struct("<IIQ")  # shard, number of buffers, bytes of the changed ones


@dataclass(frozen=True)
class WorkerRecord:
    """The report of one worker to all others."""

    stop: bool = False  # whether it was asked to stop
    seconds: float = 0.0  # that it computed in this step
    taken: Sequence[int] = ()
    present: bytes = b""
    facts: Mapping[tuple[int, int], LossFacts] = field(default_factory=dict)  # by step and shard
    buffers: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict)  # by shard: which changed, and their bytes

    def pack(self) -> bytes:
        parts = [
            HEAD.pack(self.stop, self.seconds, len(self.taken), len(self.present), len(self.facts), len(self.buffers))
        ]
        parts += map(TAKEN.pack, self.taken)
        parts.append(self.present)
        parts += [FACTS.pack(*place, *facts) for place, facts in self.facts.items()]
        for shard, (changed, contents) in self.buffers.items():
            parts += [BUFFERS.pack(shard, len(changed), len(contents)), changed, contents]
        return b"".join(parts)

    @staticmethod
    def unpack(text: bytes) -> "WorkerRecord":
        stop, seconds, num_taken, num_entries, num_facts, num_shards = HEAD.unpack_from(text)
        at = HEAD.size + num_taken * TAKEN.size
        taken = [number for (number,) in TAKEN.iter_unpack(text[HEAD.size : at])]
        present, at = text[at : at + num_entries], at + num_entries
        facts: dict[tuple[int, int], LossFacts] = {}
        for _ in range(num_facts):
            step, shard, total, weight, is_mean = FACTS.unpack_from(text, at)
            facts[step, shard] = total, weight, is_mean
            at += FACTS.size
        buffers: dict[int, tuple[bytes, bytes]] = {}
        for _ in range(num_shards):
            shard, count, nbytes = BUFFERS.unpack_from(text, at)
            at += BUFFERS.size
            buffers[shard] = text[at : at + count], text[at + count : at + count + nbytes]
            at += count + nbytes
        return WorkerRecord(stop, seconds, taken, present, facts, buffers)
