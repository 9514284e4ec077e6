"""Grids of all kinds, by short names."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from hypothesis import strategies as st

from samestep.plan.plan import equal_shares
from samestep.schedule.actions import Schedule
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders.pipeline import ORDERS
from samestep.schedule.orders.work import Works
from samestep.schedule.passes import schedule_of

DENSE, SLICED = (False,), (False, True, False)


def straight(
    workers: int,
    sets: int,
    chunks: int = 1,
    *,
    recompute: bool = False,
    sliced: tuple[bool, ...] = DENSE,
    split: bool = False,
) -> Grid:
    """The classical pipeline: stages dealt out to single workers in turn, sets of one shard."""
    stages = tuple(StageGrid((s % workers,), (sets,), sliced, recompute, split) for s in range(workers * chunks))
    return Grid(sets, 1, stages)


def schedules_of(grid: Grid, order: str | tuple[Works, ...], *, depth: int = 1, clip: bool = False) -> list[Schedule]:
    return [schedule_of(grid, order, rank, depth=depth, clip=clip) for rank in range(grid.num_workers)]


def works(grid: Grid, order: str, depth: int = 1) -> list[str]:
    """The lines of all workers, as a person would write them."""
    return [" ".join(map(str, ORDERS[order](grid, rank, depth))) for rank in range(grid.num_workers)]


def skewed(shards: int, workers: int) -> tuple[int, ...]:
    """Uneven shares: as good as everything to the last worker."""
    early = tuple(min(1, shards // workers) for _ in range(workers - 1))
    return (*early, shards - sum(early))


def groups(workers: int, stages: int, layout: str) -> list[tuple[int, ...]]:
    """The workers of each stage."""
    if layout == "in turn":
        return [(s % workers,) for s in range(stages)]
    if layout == "in runs":
        return [(s * workers // stages,) if stages >= workers else (s,) for s in range(stages)]
    if layout == "there and back":
        there = [*range(workers), *reversed(range(workers))]
        return [(there[s % len(there)],) for s in range(stages)]
    if layout == "replicated":  # PipeDream's 15-1: all but one worker, then that one, and so on
        return [tuple(range(workers - 1)) or (0,) if s % 2 == 0 else (workers - 1,) for s in range(stages)]
    return [tuple((s + i) % workers for i in range(min(workers, 2 + s % 2))) for s in range(stages)]  # overlapping


LAYOUTS = ("in turn", "in runs", "there and back", "replicated", "overlapping")


def grid_of(
    layout: str,
    workers: int,
    chunks: int,
    shards: int,
    set_size: int,
    sliced: str = "none",
    recompute: bool = False,
    split: bool = False,
) -> Grid:
    """`chunks` stages per worker, more or less; shares are uneven at every second stage."""
    stages = []
    for number, group in enumerate(groups(workers, workers * chunks, layout)):
        assign = skewed(shards, len(group)) if number % 2 else equal_shares(shards, len(group))
        here = SLICED if sliced == "all" or (sliced == "last" and number == workers * chunks - 1) else DENSE
        stages.append(StageGrid(group, assign, here, recompute, split))
    return used(Grid(shards, set_size, tuple(stages)))


def used(grid: Grid) -> Grid:
    """Workers numbered without gaps."""
    ranks = sorted({worker for stage in grid.stages for worker in stage.workers})
    stages = tuple(replace(stage, workers=tuple(map(ranks.index, stage.workers))) for stage in grid.stages)
    return Grid(grid.num_shards, grid.set_size, stages)


def many() -> Iterator[tuple[str, Grid, int]]:
    """Orders, grids and depths: up to 8 workers, 4 chunks, 32 shards; sets of 1 to 4."""
    shards_and_sets = [(1, 1), (3, 2), (4, 1), (7, 3), (8, 4), (13, 2)]
    for layout, workers, chunks, (shards, size) in product(LAYOUTS, (1, 2, 3, 5), (1, 2, 3), shards_and_sets):
        for number, order in enumerate(ORDERS):
            sliced = ("none", "last", "all")[(shards + workers + chunks + number) % 3]
            recompute, split = (shards + number) % 2 == 0, order == "zero-bubble" or shards == 4
            grid = grid_of(layout, workers, chunks, shards, size, sliced, recompute=recompute, split=split)
            yield order, grid, 1 + (shards + chunks) % 3
            yield order, grid_of(layout, workers, chunks, shards, size), 1
    for layout, (shards, size), order in product(LAYOUTS, [(32, 1), (32, 3), (29, 4)], ORDERS):
        yield order, grid_of(layout, 8, 4, shards, size, "last"), 1


@st.composite
def any_grid(draw: st.DrawFn) -> Grid:
    """Any groups, any shares, any sets."""
    shards, workers = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    stages = []
    for _ in range(draw(st.integers(1, 6))):
        group = draw(st.lists(st.integers(0, workers - 1), min_size=1, max_size=workers, unique=True))
        cuts = sorted(draw(st.lists(st.integers(0, shards), min_size=len(group) - 1, max_size=len(group) - 1)))
        assign = tuple(b - a for a, b in zip([0, *cuts], [*cuts, shards], strict=True))
        inner = draw(st.lists(st.booleans(), max_size=3))
        sliced = (False, *inner, False) if inner else DENSE
        stages.append(StageGrid(tuple(group), assign, sliced, draw(st.booleans()), draw(st.booleans())))
    return used(Grid(shards, draw(st.integers(1, 5)), tuple(stages)))
