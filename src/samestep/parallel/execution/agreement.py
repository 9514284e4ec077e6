"""The record that each worker sends to all others when they agree: at the end of a step, or at a meeting of replicas.

A record says of everything in it which step and which shard it belongs to, so that it is read without knowing who
computes what:

    head       whether to stop, seconds, and the number of each of the following
    taken      steps that each replica of the worker has taken
    present    one byte per entry of the layout: whether a shard of the worker had a gradient for it
    facts      step, shard: loss sum, weight, whether it was a mean
    buffers    shard: one byte per buffer, whether the shard changed it; for other hosts also the changed ones
    kept       shard: its number of rows, where a collate function has left out some

Before it go fingerprints of what each worker makes for itself and all must have alike (`Alike`).
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, optim

from samestep.errors import JobRefused
from samestep.job.objective import LossFacts
from samestep.parallel.gradients.job_optimizer import groups_changed
from samestep.transport.transport import Transport

HEAD = struct.Struct("<?dHIIII")  # stop, seconds, and how many: steps taken, entries, facts, buffers, shards kept
TAKEN = struct.Struct("<q")
FACTS = struct.Struct("<QIdd?")
KEPT = struct.Struct("<II")  # shard, rows
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
    kept: Mapping[int, int] = field(default_factory=dict)  # by shard: its rows, where it lacks some

    def pack(self) -> bytes:
        counts = map(len, (self.taken, self.present, self.facts, self.buffers, self.kept))
        parts = [HEAD.pack(self.stop, self.seconds, *counts)]
        parts += map(TAKEN.pack, self.taken)
        parts.append(self.present)
        parts += [FACTS.pack(*place, *facts) for place, facts in self.facts.items()]
        for shard, (changed, contents) in self.buffers.items():
            parts += [BUFFERS.pack(shard, len(changed), len(contents)), changed, contents]
        parts += [KEPT.pack(*one) for one in self.kept.items()]
        return b"".join(parts)

    @staticmethod
    def unpack(text: bytes) -> "WorkerRecord":
        stop, seconds, num_taken, num_entries, num_facts, num_shards, num_kept = HEAD.unpack_from(text)
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
        kept = dict(KEPT.iter_unpack(text[at : at + num_kept * KEPT.size]))
        return WorkerRecord(stop, seconds, taken, present, facts, buffers, kept)


class AlikeFact(Protocol):
    """Something that each worker makes for itself and that must be equal on all."""

    way_out: str

    def word(self) -> int:
        """A fingerprint of up to 64 bits."""

    def parts(self) -> Mapping[str, str]:
        """The thing in words, part by part, for an error."""


class Alike:
    """Everything of one worker that must be equal on all workers, compared whenever they agree."""

    def __init__(self, facts: Iterable[AlikeFact] = ()) -> None:
        self.facts = list(facts)

    def exchanged(self, own: WorkerRecord, transport: Transport, step: int) -> list[WorkerRecord]:
        """The records of all workers. Raises JobRefused where a fact of one is not that of another."""
        words = struct.pack(f"<{len(self.facts)}Q", *(fact.word() for fact in self.facts))
        texts = transport.exchange(words + own.pack())
        if any(text[: len(words)] != words for text in texts):
            self._refuse(transport, step)
        return [WorkerRecord.unpack(text[len(words) :]) for text in texts]

    def compare(self, transport: Transport, step: int) -> None:
        """Compare at once, where workers communicate before they agree."""
        words = struct.pack(f"<{len(self.facts)}Q", *(fact.word() for fact in self.facts))
        if any(text != words for text in transport.exchange(words)):
            self._refuse(transport, step)

    def _refuse(self, transport: Transport, step: int) -> None:
        """Every worker has seen that the words differ."""
        own = json.dumps([[fact.word(), dict(fact.parts())] for fact in self.facts])
        workers = [json.loads(text) for text in transport.exchange(own.encode())]
        for i, fact in enumerate(self.facts):
            word, parts = workers[0][i]
            for rank, other in enumerate(workers[1:], 1):
                if other[i][0] != word:
                    name = next((one for one in parts if parts[one] != other[i][1].get(one)), next(iter(parts)))
                    raise JobRefused(
                        f"step {step}: {name} is {parts[name]} on worker 0 and {other[i][1].get(name)} on worker {rank}"
                        f": {fact.way_out}"
                    )


class Settings:
    """An optimizer's hyperparameters: a learning rate that one worker sets alone gives its pieces another update."""

    way_out = (
        "every worker must set the same values: let a scheduler do it (Job.scheduler, called on every worker alike), "
        "or set them by the step's number on every worker"
    )

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._sizes = [len(group["params"]) for group in optimizer.param_groups]

    def word(self) -> int:
        """Raises JobRefused where there are other groups than at the beginning."""
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        if sizes != self._sizes:
            raise groups_changed(f"the optimizer began with {text(self._sizes)} and has {text(sizes)} now")
        found = (tuple(_plain(value) for value in group.values()) for group in self.optimizer.param_groups)
        return hash(tuple(found)) % 2**64

    def parts(self) -> Mapping[str, str]:
        return {
            f"{name} of the optimizer's parameter group {number}": str(_plain(value))
            for number, group in enumerate(self.optimizer.param_groups)
            for name, value in group.items()
            if name != "params"
        }


def text(sizes: Sequence[int]) -> str:
    """Sizes of groups in words, as this worker has them."""
    return f"{len(sizes)} parameter group{'s' * (len(sizes) != 1)} of {' + '.join(map(str, sizes))} parameters"


def _plain(value: Any) -> Any:
    """Numbers, in tuples too; everything else is left to audits and counts as 0. Hashes of numbers are the same in
    every process."""
    if isinstance(value, float | int):
        return value if value == value else 0  # a NaN's hash is that of its address
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() else 0
