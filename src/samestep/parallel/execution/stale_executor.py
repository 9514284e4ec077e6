"""The executor of stale(s): gradients take s more steps to come, and the next ones are computed meanwhile.

Two hosts, s = 1; every host brings its sums together, gives them to all others, and updates everything itself:

    host 0   | F B 0 | F B 1        | F B 2        |      W waits for the sums of the step before, U updates with
                     P0            W0 P1 U0       W1 P2 U1 them, P posts its own
    wire             |--- sums 0 ---|--- sums 1 ---|      as long as F B: nobody waits

The slots come in s + 1 sets, one for the gradients of each step under way and one for those being made; each has
a reduction of its own. On one host nothing travels, and the reduction is of an older set all the same: the numbers
are those of the policy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samestep.parallel.execution.executor import Executor, StepState
from samestep.parallel.execution.owned_state import OwnedState, StatePiece, StoredPiece, fill
from samestep.parallel.gradients.layout import Piece, storage_order
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.schedule import actions
from samestep.schedule.stale_steps import set_of
from samestep.sync.staleness import Bound, version_at
from samestep.transport.transport import Transport


@dataclass
class UnderWay:
    """The gradients of one step, between their backward and their update."""

    step: int
    shards: int
    sets: int  # join sets; as many as shards where no layer is sliced
    scale: float  # that their sum lacks
    present: bytes  # per entry of the layout: whether some shard had one
    version: int  # of the parameters that they were computed on
    is_summed: bool = False


@dataclass(kw_only=True)
class StaleExecutor(Executor):
    """One worker's parts where gradients are used some steps later.

    reductions and views: one for each set of slots, the latter those of `GradientSlots.views_in`.
    """

    stale: int
    bound: Bound
    reductions: Sequence[TreeReduction]
    views: Sequence[list[list[Tensor]]]
    coming: list[UnderWay] = field(default_factory=list)  # oldest first
    now: UnderWay | None = None  # used by this step's update
    _read: int = 0  # the version that this step's shards are computed on

    def is_filling(self, step: int) -> bool:
        return step < self.stale

    def _schedule(self, num_shards: int, number: int) -> actions.Schedule:
        clips, filling = self.clip_grad_norm is not None, self.is_filling(number)
        rank = self.transport.rank
        grid = self.plan.grid(num_shards, [(False,)])
        return self.plan.schedule(grid, rank, clip=clips, stale=self.stale, filling=filling)

    def load(self, action: actions.Load, state: StepState) -> None:
        here, self.now = set_of(state.number, self.stale), None
        assert all(set_of(other.step, self.stale) != here for other in self.coming), "their slots are still needed"
        self.reduction = self.reductions[here]
        self.gradients.publish_at(self.views[here])
        self._read = self.bound.read(state.number, self._workers_here())
        self.bound.look([storage_order(entry.param.detach()) for _, entry in self.layout.owners()])
        super().load(action, state)

    def forward(self, action: actions.Forward, state: StepState) -> None:
        self.bound.read(state.number, self._workers_here())
        super().forward(action, state)

    def post(self, action: actions.Post, state: StepState) -> None:
        shards, sets = len(state.rows), self._work(state).num_sets
        self.coming.append(UnderWay(state.number, shards, sets, state.scale, state.present, self._read))
        if self.transport.links is not None:
            self.transport.links.give_way()  # nobody waits for these bytes; who computes would be disturbed for each
        self.reduction.exchange.post()

    def wait_for(self, action: actions.Await, state: StepState) -> None:
        self.now = self.coming.pop(0)
        assert self.now.step == state.number - action.age, "gradients are used in their order"
        self.bound.use(self.now.step, self.now.version, self._read)
        if not self.now.is_summed:
            self._reduction_of(self.now.step).exchange.arrive()

    def reduce(self, action: actions.Reduce, state: StepState) -> None:
        assert self.now is not None
        if not self.now.is_summed:
            self._sum(self.now)

    def gradient(self, state: StepState, piece: Piece) -> Tensor | None:
        now = self.now
        if now is None or not self.is_present(now, piece.entry):
            return None
        return self._reduction_of(now.step).total(piece)

    def step(self, action: actions.Update, state: StepState) -> None:
        super().step(action, state)
        self.bound.versions[number_on_host(self.transport)] += 1

    def report(self) -> dict[str, float]:
        return self.bound.report()

    def state(self) -> "StaleState":
        parts = self.layout, self.ownership, self.update, self.buffers, self.edges, self.transport
        return StaleState(*parts, executor=self)

    def sum_under_way(self) -> None:
        """Sum gradients before their turn, which changes no bit: state must not depend on who has which shards."""
        for one in self.coming:
            if not one.is_summed:
                self._reduction_of(one.step).exchange.arrive()
                self._sum(one)

    def total_of(self, step: int, piece: Piece) -> Tensor:
        """Memory of the summed gradient of an owned piece."""
        return self._reduction_of(step).total(piece)

    def take_back(self, step: int, present: bytes) -> None:
        """Take gradients from a checkpoint; the totals are written to `total_of`."""
        self.coming = [one for one in self.coming if one.step != step]
        self.coming.append(UnderWay(step, 0, 0, 1.0, present, version_at(step, self.stale), is_summed=True))
        self.coming.sort(key=lambda one: one.step)

    def _sum(self, one: UnderWay) -> None:
        reduction = self._reduction_of(one.step)
        self.transport.counted.moved += reduction.sum_pieces(one.shards, one.scale, one.sets)
        one.is_summed = True

    def _reduction_of(self, step: int) -> TreeReduction:
        return self.reductions[set_of(step, self.stale)]

    def is_present(self, one: UnderWay, entry: int) -> bool:
        """Whether some shard had a gradient for an entry."""
        return any(one.present[i] for i in self.layout.names[entry])

    def _workers_here(self) -> range:
        """The workers of this host, by their numbers on it."""
        return range(len(self.bound.versions))


@dataclass(kw_only=True)
class StaleState(OwnedState):
    """The state of a worker, with the gradients under way."""

    executor: StaleExecutor

    def under_way(self) -> Iterator[StatePiece]:
        self.executor.sum_under_way()
        for one in self.executor.coming:
            for name, piece in self._own.items():
                if self.executor.is_present(one, piece.entry):
                    total = self.executor.total_of(one.step, piece)
                    yield StatePiece(f"underway/{one.step}/{name}", total, piece.start, whole=False)
            present = torch.frombuffer(bytearray(one.present), dtype=torch.uint8)
            yield StatePiece(f"present/{one.step}", present)

    def restore(self, stored: StoredPiece) -> None:
        kind, _, name = stored.label.partition("/")
        step, _, entry = name.partition("/")
        if kind == "underway" and (piece := self._own.get(entry)) is not None:
            fill(self.executor.total_of(int(step), piece), piece.start, stored)
        elif kind == "present":
            self.executor.take_back(int(step), stored.read().numpy().tobytes())
        else:
            super().restore(stored)


def number_on_host(transport: Transport) -> int:
    return transport.hosts[: transport.rank].count(transport.hosts[transport.rank])


def sets_of(slots: Sequence[Sequence[Tensor]], counts: Sequence[int], stale: int) -> list[list[list[Tensor]]]:
    """slots[w]: all slots of worker w, `counts[w]` for each set, empty for workers of other hosts. Returns set by set,
    worker by worker."""
    return [
        [list(own[number * count : (number + 1) * count]) for own, count in zip(slots, counts, strict=True)]
        for number in range(stale + 1)
    ]
