"""The segments of a plan on a chain: the units, regions and rests that each segment of each stage consists of.

    chain      conv1  conv2  fc1  fc2         plan: fc1+fc2 sliced, a stage begins at conv2
    stage 0    [conv1]
    stage 1    [conv2] | {fc1 fc2} | [rest of fc2]

The numbering of segments is that of the schedule's actions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from samestep.errors import PlanRefused
from samestep.plan.plan import Plan, Stage
from samestep.planner.cost.chain import Chain
from samestep.schedule import actions
from samestep.schedule.actions import Action


@dataclass(frozen=True)
class PlanSegment:
    """A segment: dense, of whole units and of the unsliced rests of regions; or one sliced region."""

    stage: int
    units: tuple[int, ...] = ()
    rests: tuple[int, ...] = ()  # regions
    region: int | None = None
    slices: tuple[int, ...] = ()  # of the region, on each worker of the stage


@dataclass(frozen=True)
class PlanSegments:
    """A plan's segments on a chain."""

    plan: Plan
    chain: Chain
    stages: tuple[Stage, ...]  # one for the whole model where the plan has none
    parts: tuple[PlanSegment, ...]  # by segment
    is_uncut: bool  # one segment without an edge

    @property
    def sliced(self) -> list[tuple[bool, ...]]:
        """Whether each segment of each stage is sliced."""
        return [
            tuple(part.region is not None for part in self.parts if part.stage == stage)
            for stage in range(len(self.stages))
        ]

    def units_of(self, stage: int) -> range:
        """The units of a stage, sliced ones included."""
        return range(self._starts[stage], self._starts[stage + 1])

    @cached_property
    def _starts(self) -> list[int]:
        return [*starts_of(self.stages, self.chain), len(self.chain.units)]

    def held(self, num_shards: int) -> list[dict[int, range]]:
        """The shards that each worker of each stage computes, in a step that has `num_shards`."""
        return [stage.shards_by_worker(num_shards) for stage in self.stages]

    def crossing(self, action: Action) -> float:
        """Bytes of a message: a shard's activations over a cut, or their gradients back."""
        assert isinstance(action, actions.CutMessage)
        unit = self.chain.units[self.units_of(action.stage + 1).start]
        return unit.crossing if isinstance(action, actions.Send | actions.Receive) else unit.crossing_back


def segment_plan(plan: Plan, chain: Chain) -> PlanSegments:
    """Lay a plan over a chain. Raises PlanRefused when the plan cuts where the chain has no cut."""
    stages = plan.stages_or_whole
    starts = [*starts_of(stages, chain), len(chain.units)]
    parts = tuple(
        part
        for number, stage in enumerate(stages)
        for part in _parts(number, stage, range(starts[number], starts[number + 1]), chain)
    )
    return PlanSegments(plan, chain, stages, parts, not plan.stages)


def starts_of(stages: Sequence[Stage], chain: Chain) -> list[int]:
    """The first unit of every stage. Raises PlanRefused for one at which nothing was measured."""
    names = [unit.name for unit in chain.units]
    found = [0]
    for stage in stages[1:]:
        inside = [i for i, name in enumerate(names) if name == stage.first or name.startswith(f"{stage.first}.")]
        if not inside or inside[0] <= found[-1]:
            raise PlanRefused(
                f"the plan has a stage that begins at {stage.first}, and what was measured of this model cannot be cut "
                f"there; it can before {', '.join(names[1:9])}{', ...' if len(names) > 9 else ''}"
            )
        found.append(inside[0])
    return found


def _parts(number: int, stage: Stage, units: range, chain: Chain) -> Iterator[PlanSegment]:
    """A stage's segments: dense and sliced ones alternate, and dense ones are at both ends."""
    counts = dict(stage.slices)
    dense: list[int] = []
    rests: list[int] = []
    at = units.start
    while at < units.stop:
        region = _region_at(at, chain, counts)
        if region is None:
            dense.append(at)
            at += 1
            continue
        found = chain.regions[region]
        yield PlanSegment(number, tuple(dense), tuple(rests))
        yield PlanSegment(number, region=region, slices=counts[found.layers[0]])
        dense, rests, at = [], [region], found.units[-1] + 1
    yield PlanSegment(number, tuple(dense), tuple(rests))


def _region_at(unit: int, chain: Chain, counts: dict[str, tuple[int, ...]]) -> int | None:
    """The sliced region that begins with a unit. Raises PlanRefused for half of a region that was measured as one."""
    name = chain.units[unit].name
    if name not in counts:
        return None
    for number, region in enumerate(chain.regions):
        if region.units[0] == unit and all(counts.get(layer) == counts[name] for layer in region.layers):
            return number
    raise PlanRefused(
        f"the plan slices {name}, and that was not measured by itself: it is sliced with its neighbour, or whole"
    )
