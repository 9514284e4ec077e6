"""Activations that a worker holds at a time, counted along its schedule before anything is computed.

    Forward(0)   holds what its calls save for backward, and the values that later segments or the cut need
    Send(0)      drops the values
    Backward(0)  holds the gradients around one call for a moment; drops what was saved, except the inputs and
                 outputs' gradients from which deferred gradients of weights are made

Memory that several calls and values share counts once. A sliced segment has its own: the rows of all
shards of the set, and the worker's slices of what is between its layers.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from samestep.parallel.cutting.cut import Cut, Region, Segment
from samestep.parallel.cutting.recording import Call, SavedForBackward, Storage
from samestep.parallel.demand.planned_step import PlannedStep
from samestep.schedule import actions

Held = dict[Hashable, int]  # bytes, by the thing that takes them
NOTHING = SavedForBackward((), 0)


@dataclass
class _Ledger:
    """Things held at present, each counted once however many hold it, and the peak of their bytes."""

    now: int = 0
    peak: int = 0
    _holders: Counter[Hashable] = field(default_factory=Counter)

    def hold(self, things: Mapping[Hashable, int]) -> None:
        for thing, nbytes in things.items():
            self.now += nbytes * (self._holders[thing] == 0)
            self._holders[thing] += 1
        self.peak = max(self.peak, self.now)

    def pass_by(self, nbytes: int) -> None:
        """Count bytes that are held for a moment only."""
        self.peak = max(self.peak, self.now + nbytes)

    def drop(self, things: Mapping[Hashable, int]) -> None:
        for thing, nbytes in things.items():
            self._holders[thing] -= 1
            self.now -= nbytes * (self._holders[thing] == 0)


def activations(step: PlannedStep, rank: int, schedule: Sequence[actions.Action]) -> int:
    """The most bytes that worker `rank` holds at a time."""
    worker = _HeldByWorker(step, rank)
    for action in schedule:
        worker.do(action)
    return worker.ledger.peak


@dataclass
class _HeldByWorker:
    """Values and saved tensors that `Network` holds on one worker, by their names and sizes."""

    step: PlannedStep
    rank: int
    ledger: _Ledger = field(default_factory=_Ledger)
    _passing: dict[tuple[int, int], Held] = field(default_factory=dict)  # values, by shard and stage
    _cells: dict[tuple[int, int], Held] = field(default_factory=dict)  # by shard (sliced: first of a set) and segment
    _deferred: dict[tuple[int, int], Held] = field(default_factory=dict)  # for gradients of weights, made later
    _before: dict[tuple[int, int], Held] = field(default_factory=dict)  # to compute again

    @property
    def cut(self) -> Cut:
        return self.step.cut

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
            if self.step.plan.splits_backward(segment.stage):
                self._backward_deferring(action.shard, segment, action.segment)
            else:
                self._backward(action.shard, segment, action.segment)
        elif isinstance(action, actions.BackwardWeight):
            self.ledger.drop(self._deferred.pop((action.shard, action.segment)))
        elif isinstance(action, actions.SliceForward):
            self._slice_forward(action.shards, action.segment)
        elif isinstance(action, actions.SliceBackward):
            self.ledger.pass_by(self._exchanged_back(action.shards, action.segment))
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
        self.ledger.pass_by(max((part.rearranged for call in segment.calls for part in call.saved), default=0))
        stages = self.step.plan.stages
        if stages and stages[stage].recompute:
            before = self._before[shard, number] = dict(self._passing.get((shard, stage), {}))
            self.ledger.hold(before)
            self.ledger.hold(saved)
            self.ledger.drop(saved)
        else:
            self._keep(shard, number, saved)
        self._pass(shard, stage, self._values(shard, self._wanted(number)))

    def _backward(self, shard: int, segment: Segment, number: int) -> None:
        """Backward call by call, from the last; what a call saved is dropped when its backward is done."""
        parts = [(call, part) for call in segment.calls for part in call.saved or (NOTHING,)]
        kept = [self._held(shard, part.storages) for _, part in parts]
        for held in kept:
            self.ledger.hold(held)
        self.ledger.drop(self._cells.pop((shard, number)))
        for (call, part), held in zip(reversed(parts), reversed(kept), strict=True):
            self.ledger.pass_by(max(self._around(call), part.gradients) + part.rearranged)
            self.ledger.drop(held)

    def _backward_deferring(self, shard: int, segment: Segment, number: int) -> None:
        """The same, except for what Linears need for gradients of weights that are made later."""
        kept = [self._kept(shard, call) for call in segment.calls]
        for held in kept:
            self.ledger.hold(held)
        self.ledger.drop(self._cells.pop((shard, number)))
        left = self._deferred[shard, number] = {}
        for call, held in zip(reversed(segment.calls), reversed(kept), strict=True):
            new: Held = {(shard, storage.number): storage.nbytes for storage, _ in call.deferrable}
            new |= {("gradient", shard, number, len(left) + i): nbytes for i, (_, nbytes) in enumerate(call.deferrable)}
            self.ledger.pass_by(self._around(call))
            self.ledger.hold({thing: nbytes for thing, nbytes in new.items() if thing not in left})
            self.ledger.pass_by(self._gradients(call.takes))
            self.ledger.drop(held)
            left |= new

    def _slice_forward(self, shards: range, number: int) -> None:
        stage = self.cut.segments[number].stage
        self._keep(shards.start, number, self._sliced(shards, number))
        self.ledger.pass_by(self._exchanged(shards, number))
        for shard in self.step.plan.shards_of(self.rank, self.step.num_shards, stage):
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
        return self._held(shard, call.saved_storages)

    def _held(self, shard: int, storages: Iterable[Storage]) -> Held:
        return {(shard, storage.number): storage.nbytes for storage in storages}

    def _values(self, shard: int, values: Iterable[int]) -> Held:
        return self._held(
            shard, (self.cut.storages[value] for value in values if value >= self.cut.num_inputs or value < 0)
        )

    def _wanted(self, number: int) -> set[int]:
        """Values that exist after a segment and are needed later."""
        made = {value for segment in self.cut.segments[: number + 1] for value in segment.gives}
        return made & self.cut.needed_after(number)

    def _around(self, call: Call) -> int:
        """Bytes of the gradients of what a call makes and of what it takes."""
        return self._gradients({*call.makes, *call.takes})

    def _gradients(self, values: Iterable[int]) -> int:
        made = {value for value in self.cut.floats.intersection(values) if value >= self.cut.num_inputs}
        return sum(self.cut.nbytes[value] for value in made)

    def _sliced(self, shards: range, number: int) -> Held:
        """Tensors saved in a sliced segment: inputs whole, those between the layers in slices."""
        region, own, total = self._region(number)
        if not own:
            return {}
        kept = {storage for part in region.saved for storage in part.storages}
        between = kept - {self.cut.storages[region.takes]}
        sliced = sum(storage.nbytes for storage in between) * own // total
        return {("slices", shards.start, number): len(shards) * (self.cut.nbytes[region.takes] + sliced)}

    def _exchanged(self, shards: range, number: int) -> int:
        """Bytes of the outputs of the own slices, and of the joined output."""
        region, own, total = self._region(number)
        width = self.cut.nbytes[region.makes]
        outputs = 2 * width * own // total if not region.is_summed else width * own
        return len(shards) * (outputs + self._inside(region, own, total, rearranged_only=True))

    def _exchanged_back(self, shards: range, number: int) -> int:
        """Bytes of the output's gradient, whole, of the own slices' input gradients, and of those inside a slice."""
        region, own, total = self._region(number)
        width = self.cut.nbytes[region.makes]
        outputs = 2 * width * own // total if not region.is_summed else width * bool(own)
        gradients = self.cut.nbytes[region.takes] * own if region.takes in self.cut.floats else 0
        return len(shards) * (outputs + gradients + self._inside(region, own, total))

    def _inside(self, region: Region, own: int, total: int, *, rearranged_only: bool = False) -> int:
        """Bytes inside one slice, for a moment; a convolution rearranges the whole input."""
        if not own:
            return 0
        inside = [0 if rearranged_only else part.gradients for part in region.saved[:-1]]
        takes, makes = self.cut.nbytes[region.takes], self.cut.nbytes[region.makes]
        rearranged = takes + makes // total if any(part.rearranged for part in region.saved) else 0
        return max(inside, default=0) // total + rearranged

    def _region(self, number: int) -> tuple[Region, int, int]:
        """A sliced segment's region; the number of its slices on this worker, and in all."""
        segment = self.cut.segments[number]
        region, counts = self.step.slices_of(segment)
        return region, counts[self.step.plan.stages[segment.stage].workers.index(self.rank)], sum(counts)
