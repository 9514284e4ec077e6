"""The activations that a worker holds at a time, counted along its schedule before anything is computed.

    Forward(0)   what its calls keep for backward, and the values that later segments or the cut want
    Send(0)      the values are gone
    Backward(0)  for a moment, the gradients around one call too; then what was kept is gone, except
                 what gradients of weights are made from that are left for later: inputs, outputs' gradients

Memory that several calls and values share counts once. A sliced segment has its own: the rows of all
shards of the set, of what lies between its layers the worker's slices.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from samestep.parallel.cut import Cut, Region, Segment
from samestep.parallel.recording import Call
from samestep.plan import Plan
from samestep.schedule import actions

Held = dict[Hashable, int]  # bytes, by what they are


@dataclass
class _Ledger:
    """What is held, however often."""

    now: int = 0
    peak: int = 0
    _holders: Counter[Hashable] = field(default_factory=Counter)

    def hold(self, things: Mapping[Hashable, int]) -> None:
        for thing, nbytes in things.items():
            self.now += nbytes * (self._holders[thing] == 0)
            self._holders[thing] += 1
        self.peak = max(self.peak, self.now)

    def pass_by(self, nbytes: int) -> None:
        """Held for a moment only."""
        self.peak = max(self.peak, self.now + nbytes)

    def drop(self, things: Mapping[Hashable, int]) -> None:
        for thing, nbytes in things.items():
            self._holders[thing] -= 1
            self.now -= nbytes * (self._holders[thing] == 0)


def activations(plan: Plan, rank: int, structure: Cut, schedule: Sequence[actions.Action], shards: int) -> int:
    """The most bytes that worker `rank` holds at a time in a step of so many shards, all as large as the first one."""
    worker = _Worker(plan, rank, structure, shards)
    for action in schedule:
        worker.do(action)
    return worker.ledger.peak


@dataclass
class _Worker:
    """What `Network` holds, as names."""

    plan: Plan
    rank: int
    cut: Cut
    shards: int
    ledger: _Ledger = field(default_factory=_Ledger)
    _passing: dict[tuple[int, int], Held] = field(default_factory=dict)  # values, by shard and stage
    _cells: dict[tuple[int, int], Held] = field(default_factory=dict)  # by shard (sliced: first of a set) and segment
    _left: dict[tuple[int, int], Held] = field(default_factory=dict)  # for gradients of weights, to be made later
    _before: dict[tuple[int, int], Held] = field(default_factory=dict)  # to compute again

    def do(self, action: actions.Action) -> None:
        if isinstance(action, actions.Forward):
            self._forward(action.shard, self.cut.segments[action.segment], action.segment)
        elif isinstance(action, actions.Recompute):
            segment = self.cut.segments[action.segment]
            self._keep(action.shard, action.segment, self._saved(action.shard, segment))
            self.ledger.drop(self._before.pop((action.shard, action.segment)))
        elif isinstance(action, actions.Backward):
            segment = self.cut.segments[action.segment]
            self._pass(action.shard, segment.stage + 1, {})
            if self.plan.splits_backward(segment.stage):
                self._leave(action.shard, segment, action.segment)
            else:
                self.ledger.pass_by(max(map(self._around, segment.calls), default=0))
                self.ledger.drop(self._cells.pop((action.shard, action.segment)))
        elif isinstance(action, actions.BackwardWeight):
            self.ledger.drop(self._left.pop((action.shard, action.segment)))
        elif isinstance(action, actions.SliceForward):
            self._slice_forward(action.shards, action.segment)
        elif isinstance(action, actions.SliceBackward):
            self.ledger.pass_by(self._exchanged(action.shards, action.segment))
            self.ledger.drop(self._cells.pop((action.shards.start, action.segment)))
        elif isinstance(action, actions.Send):
            self._pass(action.shard, action.stage, {})
        elif isinstance(action, actions.Receive):
            self._pass(action.shard, action.stage + 1, self._values(action.shard, self.cut.crossings[action.stage]))
        elif isinstance(action, actions.SendGradient):
            self._pass(action.shard, action.stage + 1, {})

    def _forward(self, shard: int, segment: Segment, number: int) -> None:
        stage = segment.stage
        if (shard, stage) not in self._passing and (shard, stage - 1) in self._passing:
            self._pass(shard, stage, self._values(shard, self.cut.crossings[stage - 1]))
        saved = self._saved(shard, segment)
        if self.plan.stages and self.plan.stages[stage].recompute:
            before = self._before[shard, number] = dict(self._passing.get((shard, stage), {}))
            self.ledger.hold(before)
            self.ledger.hold(saved)
            self.ledger.drop(saved)
        else:
            self._keep(shard, number, saved)
        self._pass(shard, stage, self._values(shard, self._wanted(number)))

    def _leave(self, shard: int, segment: Segment, number: int) -> None:
        """Backward call by call, from the last: what one kept is gone where its Linears do not leave it for later."""
        kept = [self._kept(shard, call) for call in segment.calls]
        for held in kept:
            self.ledger.hold(held)
        self.ledger.drop(self._cells.pop((shard, number)))
        left = self._left[shard, number] = {}
        for call, held in zip(reversed(segment.calls), reversed(kept), strict=True):
            new: Held = {(shard, storage.number): storage.nbytes for storage, _ in call.later}
            new |= {("gradient", shard, number, len(left) + i): nbytes for i, (_, nbytes) in enumerate(call.later)}
            self.ledger.pass_by(self._around(call))
            self.ledger.hold({thing: nbytes for thing, nbytes in new.items() if thing not in left})
            self.ledger.pass_by(self._gradients(call.takes))
            self.ledger.drop(held)
            left |= new

    def _slice_forward(self, shards: range, number: int) -> None:
        stage = self.cut.segments[number].stage
        self._keep(shards.start, number, self._sliced(shards, number))
        self.ledger.pass_by(self._exchanged(shards, number))
        for shard in self.plan.shards_of(self.rank, self.shards, stage):
            if shard in shards:
                self._pass(shard, stage, self._values(shard, self._wanted(number)))

    def _pass(self, shard: int, stage: int, values: Held) -> None:
        self.ledger.hold(values)
        self.ledger.drop(self._passing.pop((shard, stage), {}))
        if values:
            self._passing[shard, stage] = values

    def _keep(self, shard: int, number: int, held: Held) -> None:
        self._cells[shard, number] = held
        self.ledger.hold(held)

    def _saved(self, shard: int, segment: Segment) -> Held:
        return {thing: nbytes for call in segment.calls for thing, nbytes in self._kept(shard, call).items()}

    def _kept(self, shard: int, call: Call) -> Held:
        return {(shard, storage.number): storage.nbytes for storage in call.keeps}

    def _values(self, shard: int, values: Iterable[int]) -> Held:
        storages = [self.cut.storages[value] for value in values if value >= self.cut.num_inputs or value < 0]
        return {(shard, storage.number): storage.nbytes for storage in storages}

    def _wanted(self, number: int) -> set[int]:
        """The values that are there after a segment, and wanted later."""
        made = {value for segment in self.cut.segments[: number + 1] for value in segment.gives}
        return made & self.cut.keeps(number)

    def _around(self, call: Call) -> int:
        """The gradients of what a call makes and of what it takes."""
        return self._gradients({*call.makes, *call.takes})

    def _gradients(self, values: Iterable[int]) -> int:
        made = {value for value in self.cut.floats.intersection(values) if value >= self.cut.num_inputs}
        return sum(self.cut.nbytes[value] for value in made)

    def _sliced(self, shards: range, number: int) -> Held:
        """Inputs are kept whole by whoever has slices, what lies between in slices."""
        region, own, total = self._region(number)
        if not own:
            return {}
        between = {storage for storage in region.keeps if storage != self.cut.storages[region.takes]}
        sliced = sum(storage.nbytes for storage in between) * own // total
        return {("slices", shards.start, number): len(shards) * (self.cut.nbytes[region.takes] + sliced)}

    def _exchanged(self, shards: range, number: int) -> int:
        """What comes of the own slices: outputs, or the input's gradients, each with what is made of all together."""
        region, own, total = self._region(number)
        width = self.cut.nbytes[region.makes]
        outputs = 2 * width * own // total if not region.is_summed else width * own
        gradients = self.cut.nbytes[region.takes] * own if region.takes in self.cut.floats else 0
        return len(shards) * max(outputs, gradients)

    def _region(self, number: int) -> tuple[Region, int, int]:
        """A sliced segment's region; its slices here, and in all."""
        segment = self.cut.segments[number]
        region, stage = segment.region, self.plan.stages[segment.stage]
        assert region is not None
        counts = dict(stage.slices)[region.column]
        return region, counts[stage.workers.index(self.rank)], sum(counts)
