"""Who takes part where: looked up, and the same as what is searched for."""

from functools import partial
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.places import places


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Stages of some of six workers each, some with sliced segments; shares may be 0."""
    shards = draw(st.integers(1, 8))
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        workers = tuple(draw(st.permutations(range(6)))[: draw(st.integers(1, 6))])
        cuts = sorted(draw(st.lists(st.integers(0, shards), min_size=len(workers) - 1, max_size=len(workers) - 1)))
        assign = tuple(b - a for a, b in zip([0, *cuts], [*cuts, shards], strict=True))
        stages.append(StageGrid(workers, assign, draw(st.sampled_from([(False,), (False, True, False)]))))
    num_shards = draw(st.integers(1, shards))  # the last batch of an epoch may be short
    return Grid(num_shards, draw(st.integers(1, num_shards)), tuple(stages))


def worker_of(stage: StageGrid, shard: int) -> int:
    """The worker that computes a shard, by counting."""
    ends = list(accumulate(stage.assign))
    return next(worker for worker, end in zip(stage.workers, ends, strict=True) if shard < end)


@given(grids())
def test_what_is_looked_up_is_what_each_worker_does(grid: Grid) -> None:
    where = places(grid)
    for number, stage in enumerate(grid.stages):
        assert where.owner[number] == tuple(map(partial(worker_of, stage), range(grid.num_shards)))
        for index, shards in enumerate(where.sets):
            takers = {
                rank
                for rank in stage.workers
                if any(stage.sliced) or set(stage.shards_of(rank, grid.num_shards)) & set(shards)
            }
            assert set(where.participants(number, shards)) == takers
            for rank in range(6):
                assert (index in where.sets_at(rank, number)) == (rank in takers)
