"""Logical workers that go apart: each has parameters, buffers, optimizer and scheduler of its own.

    memory    theta_0   theta_1          of the logical workers that this worker is: its own memory
              slots     ----- sums ----->  what they publish at a meeting, as shards do gradients
              common                     what the host sees: the mean, or what the outer optimizer makes of it

One model computes for all of them: its parameters are bound to the memory of the one whose shards are computed.
A meeting is like a step's reduction in which the logical workers are the shards and their parameters the
gradients, so the same machinery moves it, within a host and between hosts. In between nobody waits for anybody:
what everybody must know (losses, a wish to stop) is told at the meetings.

Outside of steps the model is bound to `common`. `share_values` brings the mean there without touching any theta.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.execution.buffers import Buffers, same_bits
from samestep.parallel.execution.executor import SHARD_FACTS, Executor, StepSchedule, StepState
from samestep.parallel.gradients.clipping import chunk_norms, clip_factor, total_norm
from samestep.parallel.gradients.host_exchange import HostExchange
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.schedule import actions
from samestep.schedule.local_steps import local_step_schedule
from samestep.sync.averaging import ObservedBound, Outer, distance
from samestep.sync.logical_workers import Logical
from samestep.system.device import to_device

TAKEN = struct.Struct("<q")  # steps of a logical worker, in all
SEEN = struct.Struct("<qdq")  # staleness, divergence, meetings
Facts = tuple[float, float, bool]
StatePart = tuple[str, Tensor, int, bool]  # label, values, first element, whether that is all


class Untied(Layout):
    """Of the values alone: a parameter under several names is summed once."""

    def __init__(self, layout: Layout) -> None:
        self.entries, self.nbytes = layout.entries, layout.nbytes

    def aliases(self, entry: int) -> list[int]:
        return []


@dataclass
class Replica:
    """One logical worker."""

    number: int
    memory: Tensor
    update: ShardedUpdate  # over the model's parameters, bound to `memory` while it works
    scheduler: object
    buffers: Buffers
    taken: int = 0  # steps, in all


@dataclass
class Told:
    """The facts of a step's shards, which others hear of at the next meeting."""

    number: int
    rows: list[int]
    facts: dict[int, Facts] = field(default_factory=dict)


@dataclass(kw_only=True)
class LocalExecutor(Executor):
    """One worker's logical workers, and how each action uses them.

    common: memory that the host's workers see. published: this worker's slots there, maybe none. together: sums
    parameters at meetings; None where one worker is all of them. meeting: the model's buffers as others see them.
    near: the pieces of `common` that this worker writes for its host; outer: the optimizer of each, if any.
    """

    logical: Logical
    replicas: Sequence[Replica]
    common: Tensor
    published: Sequence[Tensor]
    together: TreeReduction | None
    pieces: Sequence[Piece]  # whose sums this worker makes
    meeting: Buffers
    near: Sequence[Piece]
    outer: Mapping[Piece, Outer]
    seen: ObservedBound

    def __post_init__(self) -> None:
        self._own = self.logical.of(self.transport.rank)
        plans = local_plan(self._own, self.logical.workers)
        slots = max(1 + fold.slot for fold in plans.folds if not fold.into)
        device = self.common.device
        self._slots = [*self.published]
        while len(self._slots) < slots:
            self._slots.append(torch.zeros(self.layout.nbytes, dtype=torch.uint8, device=device))
        self._now: Replica | None = None
        self._step = StepState(0, [])
        self._told: list[Told] = []
        self._missed = [False] * self.logical.workers  # who had no rows in some step since the last meeting
        self._is_common = all(replica.taken % self.logical.policy.steps == 0 for replica in self.replicas)
        self._bind(self.common)

    # A step

    def step_schedule(self, rows: int, number: int) -> StepSchedule:
        """Logical workers meet in some steps only."""
        sizes = [len(part) for part in shard_rows(rows, num_shards_of(rows, self.plan.numerics.shards))]
        shards = self.logical.all_shards(len(sizes))
        return sizes, local_step_schedule(self._own, shards, meets=self.logical.meets(number))

    def load(self, action: actions.Load, state: StepState) -> None:
        own = self.plan.touched(self.transport.rank, len(state.rows))
        state.batches = {shard: to_device(self.next_batch(), self.device) for shard in own}
        self._told.append(Told(state.number, state.rows))
        for worker, shards in enumerate(self.logical.all_shards(len(state.rows))):
            self._missed[worker] |= not shards
        state.present = bytes(len(self.layout.entries))
        self._is_common = False

    def forward(self, action: actions.Forward, state: StepState) -> None:
        replica = self._of_shard(action.shard)
        if self._now is not replica:
            self._enter(replica, state)
        super().forward(action, state)

    def backward(self, action: actions.Backward, state: StepState) -> None:
        own = self.logical.shards_of(self._of_shard(action.shard).number, len(state.rows))
        loss, place = state.losses.pop(action.shard), action.shard - own.start
        self.gradients.begin_shard(action.shard, local_plan(range(len(own)), len(own)).folds[place])
        self._seeded(loss, self._step).backward()  # type: ignore[no-untyped-call]
        self.gradients.end_shard()
        self._step.changed[place] = self.buffers.end_shard(place)
        self._step.facts[place] = (loss.sum, loss.weight, loss.is_mean)

    def local_step(self, action: actions.LocalStep, state: StepState) -> None:
        """A logical worker without rows leaves its parameters alone, as one without gradient does; its schedule goes
        on."""
        replica, own = self.replicas[action.worker - self._own.start], self._step
        if self._now is replica:
            shards = self.logical.shards_of(action.worker, len(state.rows))
            self._settle_loss([own.facts[place] for place in range(len(shards))], own)
            own.present = bytes(self.gradients.present)
            self.reduce(actions.Reduce(), own)
            self.merge_buffers(actions.MergeBuffers(), own)
            if self.clip_grad_norm is not None:
                self._clip_alone(self.clip_grad_norm, own)
            self.step(actions.Update(), own)
            self.gradients.drop()
            self._told[-1].facts |= {shard: own.facts[shard - shards.start] for shard in shards}
            state.present = bytes(a | b for a, b in zip(state.present, own.present, strict=True))
        elif replica.scheduler is not None:
            replica.scheduler.step()  # type: ignore[attr-defined]
        replica.taken += 1
        self._now = None
        if action.worker == self._own[-1]:
            self._bind(self.common)
            self.meeting.rebind(self.meeting.values)

    # A meeting

    def agree(self, action: actions.Agree, state: StepState) -> None:
        """Everybody learns the losses since the last meeting; the exchange also publishes parameters and buffers."""
        state.stop = self._gather(stop_asked=state.stop_asked)
        state.known = self.settled()

    def average(self, action: actions.Average, state: StepState) -> None:
        scale = 1 / self.logical.workers
        if self.together is not None:
            if self.between is not None:
                self.between.finish()
            self.together.sum_pieces(self.logical.workers, scale)
            self.transport.counted.moved += self.together.read[self.logical.workers]
        for piece in self.pieces:
            total = self.layout.flat(self._slots[0], piece.entry)[piece.start : piece.stop]
            if self.together is None and scale != 1.0:
                total.mul_(scale)
            self._flat(self.common, piece).copy_(total)

    def publish(self, action: actions.Publish, state: StepState) -> None:
        """The mean is there for all of the host; with an outer optimizer, then what it makes of the mean. All go on
        from there."""
        self._spread()
        self.seen.meetings += 1
        self.seen.met(max(distance(self._beside(replica)) for replica in self.replicas))
        if self.logical.policy.outer is not None:
            self.transport.fence()  # nobody still looks at the mean
            for piece, outer in self.outer.items():
                outer.step(self._flat(self.common, piece))
            self.transport.fence()
        for replica in self.replicas:
            replica.memory.copy_(self.common)
            for i, value in enumerate(self.meeting.values):
                if not same_bits(replica.buffers.values[i], value):
                    replica.buffers.values[i] = value.clone()
        self._missed = [False] * self.logical.workers
        self._is_common = True

    def share_values(self, *, everywhere: bool = False) -> None:
        """Let everybody see the mean, as evaluation and saving want it. The logical workers stay where they are."""
        if not self._is_common:
            self._gather()
            self.average(actions.Average(), StepState(0, []))
            self._spread()
            return
        self.transport.fence()

    def settle(self) -> Sequence[tuple[int, float]]:
        """Losses that others have not heard of yet."""
        if self._told:
            self._tell(b"")
        return self.settled()

    def settled(self) -> list[tuple[int, float]]:
        """The losses of the steps that were told, each once."""
        found = []
        for told in self._told:
            state = StepState(told.number, told.rows)
            self._settle_loss([told.facts[shard] for shard in range(len(told.rows))], state)
            found.append((told.number, state.loss))
        self._told = []
        return found

    def report(self) -> dict[str, float]:
        """The bound as this run has seen it, over all workers."""
        own = SEEN.pack(self.seen.staleness, self.seen.divergence, self.seen.meetings)
        found = [SEEN.unpack(text) for text in self.transport.exchange(own)]
        names = ("staleness", "divergence", "meetings")
        return {"bound": self.seen.bound, **dict(zip(names, map(max, zip(*found, strict=True)), strict=True))}

    @property
    def between(self) -> HostExchange | None:
        return None if self.together is None else self.together.between

    # State, for digest and checkpoint

    def parts(self, *, once: bool = False) -> Iterator[StatePart]:
        """All that the logical workers of this worker are, and the outer optimizer's; `once`: of one host only."""
        names = [entry.name for entry in self.layout.entries]
        for replica in self.replicas:
            head = f"local/{replica.number}"
            for i, _ in self.layout.owners():
                yield f"{head}/parameter/{names[i]}", self.layout.flat(replica.memory, i), 0, False
            for piece, kind, key, value in replica.update.state():
                yield f"{head}/{kind}/{names[piece.entry]}/{key}", value, 0, kind != "elementwise"
            for name, buffer in zip(replica.buffers.names, replica.buffers.values, strict=True):
                yield f"{head}/buffer/{name}", buffer, 0, True
        if not once or self.transport.hosts[self.transport.rank] == 0:
            for piece, outer in self.outer.items():
                yield f"outer/before/{names[piece.entry]}", outer.before, piece.start, False
                yield f"outer/velocity/{names[piece.entry]}", outer.velocity, piece.start, False
        yield "sync/missed", torch.tensor(self._missed, dtype=torch.uint8), 0, True

    def put_back(self, label: str, start: int, read: Callable[[], Tensor]) -> None:
        """Take from a part of a checkpoint what is this worker's."""
        room, _, rest = label.partition("/")
        entries = {entry.name: i for i, entry in self.layout.owners()}
        if room == "sync":
            self._missed = [bool(missed) for missed in read()]
        elif room == "outer":
            kind, _, name = rest.partition("/")
            for piece, outer in self.outer.items():
                if piece.entry == entries[name]:
                    _fill(outer.before if kind == "before" else outer.velocity, piece, read(), start)
        elif room == "local":
            number, kind, name = rest.split("/", 2)
            if kind == "parameter" and number == "0" and self._is_common:
                for piece in self.near:
                    if piece.entry == entries[name]:
                        _fill(self._flat(self.common, piece), piece, read(), 0)
            if kind == "buffer" and number == "0":
                i = self.meeting.names.index(name)
                self.meeting.set(i, read().to(self.meeting.values[i].device))
            if int(number) in self._own:
                self._put_back_in(self.replicas[int(number) - self._own.start], kind, name, read, entries)

    def _put_back_in(
        self, replica: Replica, kind: str, name: str, read: Callable[[], Tensor], entries: Mapping[str, int]
    ) -> None:
        if kind == "parameter":
            self.layout.flat(replica.memory, entries[name]).copy_(read())
        elif kind == "buffer":
            i = replica.buffers.names.index(name)
            replica.buffers.values[i] = read().to(replica.buffers.values[i].device)
        else:
            parameter, _, key = name.rpartition("/")
            piece = next(p for p, _ in replica.update.targets if p.entry == entries[parameter])
            replica.update.restore(piece, kind, key, read())

    def optimizers(self) -> list[tuple[ShardedUpdate, object]]:
        return [(replica.update, replica.scheduler) for replica in self.replicas]

    # Inside

    def _of_shard(self, shard: int) -> Replica:
        share = self.logical.shards // self.logical.workers
        return self.replicas[shard // share - self._own.start]

    def _enter(self, replica: Replica, state: StepState) -> None:
        """From here on the model is this logical worker's."""
        self.seen.read(replica.number, replica.taken % self.logical.policy.steps, self.logical.apart(state.number))
        own = self.logical.shards_of(replica.number, len(state.rows))
        self._now, self._step = replica, StepState(state.number, [state.rows[shard] for shard in own])
        self._bind(replica.memory)
        self.update, self.scheduler, self.buffers = replica.update, replica.scheduler, replica.buffers
        self.buffers.forget(range(len(self.buffers.values)))
        self.gradients.begin_step([own] * len(self.layout.entries))

    def _bind(self, memory: Tensor) -> None:
        for i, entry in enumerate(self.layout.entries):
            entry.param.data = self.layout.view(memory, i if entry.tied_to is None else entry.tied_to)

    def _clip_alone(self, largest: float, own: StepState) -> None:
        owned = [(p, g) for p, _ in self.update.targets if (g := self.gradient(own, p)) is not None]
        factor = clip_factor(total_norm(chunk_norms(owned)), largest)
        for _, grad in owned:
            grad.mul_(factor)

    def _gather(self, *, stop_asked: bool = False) -> bool:
        """Publish sums of parameters, and buffers, with what is to be told. Returns whether somebody wants to stop."""
        if self.between is not None:
            self.between.begin(self.logical.workers)
        for fold, replica in zip(local_plan(self._own, self.logical.workers).folds, self.replicas, strict=True):
            for i, _ in self.layout.owners():
                carry = self.layout.flat(replica.memory, i)
                for slot in fold.into:
                    carry = self.layout.flat(self._slots[slot], i).add_(carry)
                if not fold.into:
                    self.layout.flat(self._slots[fold.slot], i).copy_(carry)
        has_say = [worker for worker, missed in enumerate(self._missed) if not missed]  # 0 always has rows
        far, changed, own = self.transport.links is not None, dict[int, bytes](), b""
        for replica in self.replicas:
            if replica.number in has_say:
                place = has_say.index(replica.number)
                self.meeting.rebind(replica.buffers.values)
                changed[place] = self.meeting.end_shard(place)
                own += changed[place] + (self.meeting.told(place, changed[place]) if far else b"")
        texts = self._tell(bytes([stop_asked]) + own)
        for rank, text in enumerate(texts):
            at, is_near = 1, self.transport.hosts[rank] == self.transport.hosts[self.transport.rank]
            for worker in self.logical.of(rank):
                if worker in has_say:
                    place = has_say.index(worker)
                    changed[place] = text[at : at + len(self.meeting.values)]
                    at += len(self.meeting.values)
                    if far:
                        at = self.meeting.hear(place, changed[place], text, at, keep=not is_near)
        self.meeting.rebind(self.meeting.values)
        self.meeting.merge([changed[place] for place in range(len(has_say))], [1] * len(has_say))
        return any(text[0] for text in texts)

    def _tell(self, more: bytes) -> list[bytes]:
        """Exchange the facts of the steps since the last time. Returns everybody's `more`."""
        record = b"".join(TAKEN.pack(replica.taken) for replica in self.replicas)
        for told in self._told:
            own = self._shards(told, self.transport.rank)
            record += b"".join(SHARD_FACTS.pack(*told.facts[shard]) for shard in own)
        rest, taken = list[bytes](), list[int]()
        for rank, text in enumerate(self.transport.exchange(record + more)):
            at = 0
            for _ in self.logical.of(rank):
                taken += TAKEN.unpack_from(text, at)
                at += TAKEN.size
            for told in self._told:
                for shard in self._shards(told, rank):
                    told.facts[shard] = SHARD_FACTS.unpack_from(text, at)
                    at += SHARD_FACTS.size
            rest.append(text[at:])
        self.seen.agreed(taken)
        return rest

    def _shards(self, told: Told, rank: int) -> range:
        return self.plan.shards_of(rank, len(told.rows))

    def _spread(self) -> None:
        """What is in `common` becomes readable, on all hosts."""
        if self.between is not None:
            self.between.publish()
        self.transport.fence()

    def _flat(self, memory: Tensor, piece: Piece) -> Tensor:
        return self.layout.flat(memory, piece.entry)[piece.start : piece.stop]

    def _beside(self, replica: Replica) -> Iterator[tuple[Tensor, Tensor]]:
        for i, _ in self.layout.owners():
            yield self.layout.flat(replica.memory, i), self.layout.flat(self.common, i)


def _fill(target: Tensor, piece: Piece, stored: Tensor, start: int) -> None:
    """Copy what `stored` (elements start.. of the parameter) has of `piece`."""
    low, high = max(start, piece.start), min(start + len(stored), piece.stop)
    if low < high:
        target[low - piece.start : high - piece.start].copy_(stored[low - start : high - start])
