"""The replicas of a model under local(H), and their meetings.

    memory    theta_0   theta_1          of the logical workers that this worker is: its own memory
              slots     ----- sums ----->  published at a meeting, as shards publish gradients
              common                     readable by the whole host: the mean, or the outer optimizer's result

A meeting is like a step's reduction in which the logical workers are the shards and their parameters the
gradients, so the same machinery moves it, within a host and between hosts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.execution.agreement import WorkerRecord
from samestep.parallel.execution.buffers import Buffers, same_bits
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.sync.averaging import ObservedBound, Outer, distance_from_mean
from samestep.sync.logical_workers import Logical
from samestep.transport.transport import Transport


@dataclass
class Replica:
    """The state of one logical worker."""

    number: int
    memory: Tensor
    update: ShardedUpdate  # over the model's parameters, bound to `memory` while it works
    scheduler: object
    buffers: Buffers
    taken: int = 0  # steps, in all


@dataclass(kw_only=True)
class ReplicaMeeting:
    """The meetings of one worker's replicas with all others.

    common: memory that the host's workers see. slots: this worker's sums of parameters, the published ones first.
    reduction: sums parameters over all replicas. buffers: the model's, as others see them. host_pieces: the pieces of
    `common` that this worker writes for its host; outer: the optimizer of each, if any.
    """

    logical: Logical
    layout: Layout
    transport: Transport
    replicas: Sequence[Replica]
    common: Tensor
    slots: Sequence[Tensor]
    reduction: TreeReduction
    pieces: Sequence[Piece]  # summed by this worker
    buffers: Buffers
    host_pieces: Sequence[Piece]
    outer: Mapping[Piece, Outer]
    observed: ObservedBound
    missed: list[bool] = field(init=False)  # which replicas had no rows in some step since the last meeting
    is_common: bool = field(init=False)  # whether no replica has moved away from `common`

    def __post_init__(self) -> None:
        self.missed = [False] * self.logical.workers
        self.is_common = all(replica.taken % self.logical.policy.steps == 0 for replica in self.replicas)

    def sum_own(self) -> None:
        """Fold the parameters of this worker's replicas into its slots."""
        self.reduction.exchange.begin(self.logical.workers)
        own = self.logical.of(self.transport.rank)
        for fold, replica in zip(local_plan(own, self.logical.workers).folds, self.replicas, strict=True):
            for i, _ in self.layout.owners():
                carry = self.layout.flat(replica.memory, i)
                for slot in fold.into:
                    carry = self.layout.flat(self.slots[slot], i).add_(carry)
                if not fold.into:
                    self.layout.flat(self.slots[fold.slot], i).copy_(carry)

    def buffer_record(self) -> dict[int, tuple[bytes, bytes]]:
        """Write the replicas' buffers to their boards; see `Buffers.record`."""
        changed: dict[int, bytes] = {}
        for replica in self.replicas:
            if not self.missed[replica.number]:
                place = self._counted().index(replica.number)
                self.buffers.rebind(replica.buffers.values)
                changed[place] = self.buffers.end_shard(place)
        return self.buffers.record(changed, with_contents=self.transport.links is not None)

    def merge_buffers(self, records: Sequence[WorkerRecord]) -> None:
        """The mean of the buffers of all replicas that had rows in every step since the last meeting."""
        changed: dict[int, bytes] = {}
        hosts, here = self.transport.hosts, self.transport.hosts[self.transport.rank]
        for rank, record in enumerate(records):
            for place, (flags, contents) in record.buffers.items():
                changed[place] = flags
                if hosts[rank] != here:
                    self.buffers.receive(place, flags, contents)
        self.buffers.rebind(self.buffers.values)
        self.buffers.merge([changed[place] for place in range(len(changed))], [1] * len(changed))

    def _counted(self) -> list[int]:
        return [worker for worker, missed in enumerate(self.missed) if not missed]  # 0 always has rows

    def average(self) -> None:
        """Leave in `common` the mean of the pieces that this worker sums."""
        self.reduction.exchange.finish()
        workers = self.logical.workers
        self.transport.counted.moved += self.reduction.sum_pieces(workers, 1 / workers)
        for piece in self.pieces:
            self.flat(self.common, piece).copy_(self.reduction.total(piece))

    def spread(self) -> None:
        """Make `common` readable on all hosts."""
        self.reduction.exchange.publish()
        self.transport.fence()

    def end(self) -> None:
        """Let all replicas continue from the mean, or from what the outer optimizer makes of it."""
        self.observed.meetings += 1
        self.observed.met(max(distance_from_mean(self._beside_common(replica)) for replica in self.replicas))
        if self.logical.policy.outer is not None:
            self.transport.fence()  # nobody still looks at the mean
            for piece, outer in self.outer.items():
                outer.step(self.flat(self.common, piece))
            self.transport.fence()
        for replica in self.replicas:
            replica.memory.copy_(self.common)
            for i, value in enumerate(self.buffers.values):
                if not same_bits(replica.buffers.values[i], value):
                    replica.buffers.values[i] = value.clone()
        self.missed = [False] * self.logical.workers
        self.is_common = True

    def flat(self, memory: Tensor, piece: Piece) -> Tensor:
        """A piece of `memory`, 1-D."""
        return self.layout.flat(memory, piece.entry)[piece.start : piece.stop]

    def _beside_common(self, replica: Replica) -> Iterator[tuple[Tensor, Tensor]]:
        for i, _ in self.layout.owners():
            yield self.layout.flat(replica.memory, i), self.layout.flat(self.common, i)
