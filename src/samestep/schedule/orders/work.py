"""Work, the unit of an order: a set of shards through a stage.

A *chunk* is a run of consecutive stages of the same workers; a set goes through all of them at once.

    stage      0  1  2  3  4
    workers    0  0  1  0  1        four chunks: 0-1, 2, 3, 4
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from samestep.schedule.grid import Grid
from samestep.schedule.places import Places, places

Kind = Literal["F", "B", "W"]


@dataclass(frozen=True)
class Work:
    """A worker's part of taking a set of shards through a stage.

    F is its forward, B its backward. In a stage that splits its backwards, B ends with the gradient of the
    stage's input, and W makes the weights' gradients, any time later.
    """

    kind: Kind
    stage: int
    set_index: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.set_index}"


Works = tuple[Work, ...]


def works_of(grid: Grid, rank: int) -> Iterator[Work]:
    """All work of worker `rank`, in no order that could be run."""
    where = places(grid)
    for stage in range(len(grid.stages)):
        for index in sorted(where.sets_at(rank, stage)):
            yield Work("F", stage, index)
            yield Work("B", stage, index)
            yield from weights_of(where, rank, stage, index)


def weights_of(where: Places, rank: int, stage: int, index: int) -> Works:
    """Work that a worker's backward of a set defers: its own shards' gradients of weights, or none."""
    has_some = where.grid.stages[stage].split and where.own(rank, stage, where.sets[index])
    return (Work("W", stage, index),) if has_some else ()


def stage_chunks(grid: Grid) -> tuple[range, ...]:
    """Runs of consecutive stages that have the same workers."""
    stages = grid.stages
    starts = [s for s in range(len(stages)) if s == 0 or stages[s].workers != stages[s - 1].workers]
    return tuple(range(a, b) for a, b in zip(starts, [*starts[1:], len(stages)], strict=True))


def chunks_held(grid: Grid, rank: int) -> int:
    return sum(rank in grid.stages[chunk.start].workers for chunk in stage_chunks(grid))
