"""Lookup tables of a grid: the worker of every shard, the stage of every segment, the set of every shard."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

from samestep.errors import PlanRefused
from samestep.schedule.grid import Grid


@dataclass(frozen=True)
class Places:
    """The tables of one grid, made by `places`."""

    grid: Grid
    sets: tuple[range, ...]
    set_of: tuple[range, ...]  # per shard
    segments: tuple[range, ...]  # per stage
    stage_of: tuple[int, ...]  # per segment
    sliced: tuple[bool, ...]  # per segment
    owner: tuple[tuple[int, ...], ...]  # per stage and shard: the worker that computes it

    def own(self, rank: int, stage: int, shards: range) -> tuple[int, ...]:
        """Those of `shards` that worker `rank` computes at `stage`."""
        return tuple(shard for shard in shards if self.owner[stage][shard] == rank)

    def participants(self, stage: int, shards: range) -> tuple[int, ...]:
        here = self.grid.stages[stage]
        if any(here.sliced):
            return here.workers
        return tuple(dict.fromkeys(self.owner[stage][shard] for shard in shards))

    def sets_at(self, rank: int, stage: int) -> Collection[int]:
        """Indices of the sets in which worker `rank` takes part at `stage`."""
        here = self.grid.stages[stage]
        if any(here.sliced):
            return range(len(self.sets)) if rank in here.workers else ()
        return self._sets_of_owners[stage].get(rank, ())

    @cached_property
    def _sets_of_owners(self) -> tuple[dict[int, set[int]], ...]:
        found: tuple[dict[int, set[int]], ...] = tuple({} for _ in self.owner)
        for owners, by_rank in zip(self.owner, found, strict=True):
            for index, shards in enumerate(self.sets):
                for shard in shards:
                    by_rank.setdefault(owners[shard], set()).add(index)
        return found


@cache
def places(grid: Grid) -> Places:
    """The tables of a grid. Raises PlanRefused for a grid with shards or segments that no worker computes."""
    refuse_gaps(grid)
    segments = tuple(grid.segments_of(stage) for stage in range(len(grid.stages)))
    return Places(
        grid,
        grid.sets,
        tuple(shards for shards in grid.sets for _ in shards),
        segments,
        tuple(stage for stage, numbers in enumerate(segments) for _ in numbers),
        tuple(chain.from_iterable(stage.sliced for stage in grid.stages)),
        tuple(
            tuple(rank for rank, own in stage.shards_by_worker(grid.num_shards).items() for _ in own)
            for stage in grid.stages
        ),
    )


def refuse_gaps(grid: Grid) -> None:
    if not grid.stages or grid.set_size < 1:
        raise PlanRefused(f"{len(grid.stages)} stages, sets of {grid.set_size} shards: there must be at least one")
    for number, stage in enumerate(grid.stages):
        if len(set(stage.workers)) != len(stage.workers) or len(stage.assign) != len(stage.workers):
            raise PlanRefused(
                f"stage {number} has the workers {stage.workers} and the shares {stage.assign}: "
                "name every worker once and give each one share"
            )
        if sum(stage.assign) < grid.num_shards or min(stage.assign) < 0:
            raise PlanRefused(
                f"stage {number} gives out {stage.assign} shards to its workers, the step has {grid.num_shards}: "
                "every stage gives out all of them"
            )
        if not stage.sliced or stage.sliced[0] or stage.sliced[-1]:
            raise PlanRefused(f"stage {number} must begin and end with a dense segment; it has sliced={stage.sliced}")
