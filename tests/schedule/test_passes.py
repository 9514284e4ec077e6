"""From sets to actions: the picture in `passes.py`, as lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.schedule.actions import (
    Agree,
    Backward,
    BackwardWeight,
    Clip,
    Forward,
    Load,
    Lockstep,
    MergeBuffers,
    Publish,
    Receive,
    ReceiveGradient,
    Recompute,
    Reduce,
    Schedule,
    Send,
    SendGradient,
    SliceBackward,
    SliceForward,
    Update,
)
from samestep.schedule.duties import duties
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders.pipeline import ORDERS
from samestep.schedule.passes import schedule_of
from samestep.schedule.places import places
from samestep.schedule.simulator import TAIL
from schedule.grids import DENSE, SLICED, any_grid, schedules_of, straight

END = (Agree(), Reduce(), MergeBuffers(), Update(), Publish())


def test_two_stages_on_two_workers() -> None:
    first, last = schedules_of(straight(2, 1), "1f1b")
    assert first == (Load(), Forward(0, 0), Send(0, 0, 1), ReceiveGradient(0, 0, 1), Backward(0, 0), *END)
    assert last == (Load(), Receive(0, 0, 0), Forward(0, 1), Backward(0, 1), SendGradient(0, 0, 0), *END)


def test_a_sliced_stage_as_drawn() -> None:
    """Two shards of one set, the second on worker 1; the group of the sliced stage meets for both."""
    grid = Grid(2, 2, (StageGrid((2,), (2,), DENSE), StageGrid((0, 1), (1, 1), SLICED, recompute=True)))
    both = range(2)
    assert schedules_of(grid, "1f1b")[1] == (
        Load(),
        *(Receive(1, 0, 2), Forward(1, 1), SliceForward(both, 2), Forward(1, 3)),
        *(Recompute(1, 3), Backward(1, 3), SliceBackward(both, 2), Recompute(1, 1), Backward(1, 1)),
        SendGradient(1, 0, 2),
        *END,
    )


def test_weight_gradients_are_the_shards_own() -> None:
    """Of the dense segments; a sliced one makes its own in its backward."""
    grid = Grid(2, 2, (StageGrid((0, 1), (2, 0), SLICED, split=True),))
    first, second = schedules_of(grid, "zero-bubble")
    assert first[-len(END) - 4 : -len(END)] == tuple(BackwardWeight(s, p) for p in (2, 0) for s in (0, 1))
    assert not any(isinstance(action, BackwardWeight) for action in second)


def test_a_worker_without_shards_performs_its_slices() -> None:
    grid = Grid(2, 1, (StageGrid((0, 1), (2, 0), SLICED),))
    slices = [kind(range(s, s + 1), 1) for s in range(2) for kind in (SliceForward, SliceBackward)]
    assert schedule_of(grid, "1f1b", 1, clip=False) == (Load(), *slices, *END)


def test_stages_of_one_worker_send_nothing() -> None:
    grid = Grid(1, 1, (StageGrid((0,), (1,), DENSE), StageGrid((0,), (1,), DENSE)))
    work = (Forward(0, 0), Forward(0, 1), Backward(0, 1), Backward(0, 0))
    assert schedule_of(grid, "1f1b", 0, clip=True) == (Load(), *work, *END[:3], Clip(), *END[3:])


def data_parallel(shards: range, *, lockstep: bool, clip: bool) -> Schedule:
    """The order of part 1, written out: each shard forward and at once backward, then the tail."""
    shard_by_shard = tuple(action for s in shards for action in (Forward(s), Backward(s)))
    together = (Lockstep(tuple(shards)),) if shards else ()
    clipping = (Clip(),) if clip else ()
    tail = (Agree(), Reduce(), MergeBuffers(), *clipping, Update(), Publish())
    return (Load(), *(together if lockstep else shard_by_shard), *tail)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans(), st.booleans(), st.integers(0, 16))
def test_one_stage_is_the_data_parallel_order(assign: list[int], clip: bool, lockstep: bool, shards: int) -> None:
    shards = min(shards, sum(assign))
    grid = Grid(shards, 1, (StageGrid(tuple(range(len(assign))), tuple(assign), DENSE),))
    for rank in range(len(assign)):
        expected = data_parallel(grid.stages[0].shards_of(rank, shards), lockstep=lockstep, clip=clip)
        assert schedule_of(grid, "1f1b", rank, clip=clip, lockstep=lockstep) == expected


def test_lockstep_needs_the_whole_model() -> None:
    grid = Grid(4, 1, (StageGrid((0, 1), (3, 1), DENSE),))
    assert schedule_of(grid, "1f1b", 0, lockstep=True, clip=False)[1:3] == (Lockstep((0, 1, 2)), Agree())
    with pytest.raises(PlanRefused, match=r"2 stages and 0 sliced segments: use --plan data"):
        schedule_of(straight(2, 2), "1f1b", 0, lockstep=True, clip=False)


def test_lockstep_cannot_recompute() -> None:
    with pytest.raises(PlanRefused, match="drop recomputation"):
        schedule_of(straight(1, 2, recompute=True), "1f1b", 0, lockstep=True, clip=False)


def test_a_warm_up_of_nothing_is_refused() -> None:
    with pytest.raises(PlanRefused, match="depth=0"):
        schedule_of(straight(2, 2), "1f1b", 0, depth=0, clip=False)


@given(any_grid(), st.sampled_from(sorted(ORDERS)))
def test_the_passes_do_what_the_grid_asks(grid: Grid, order: str) -> None:
    """`duties` says the same apart from any order."""
    for rank, schedule in enumerate(schedules_of(grid, order)):
        work = [action for action in schedule if not isinstance(action, TAIL)]
        assert len(work) == len(set(work))
        assert set(work) == set(duties(places(grid), rank))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (StageGrid((0, 1), (1, 1), DENSE), "gives out .1, 1. shards"),
        (StageGrid((0, 1), (3,), DENSE), "give each one share"),
        (StageGrid((0, 0), (1, 2), DENSE), "name every worker once"),
        (StageGrid((0,), (3,), (True, False)), "begin and end with a dense segment"),
        (StageGrid((0,), (3,), ()), "begin and end with a dense segment"),
    ],
)
def test_a_grid_with_gaps_is_refused(stage: StageGrid, words: str) -> None:
    with pytest.raises(PlanRefused, match=f"stage 1.*{words}"):
        schedule_of(Grid(3, 1, (StageGrid((0,), (3,), DENSE), stage)), "1f1b", 0, clip=False)
    with pytest.raises(PlanRefused, match="at least one"):
        schedule_of(Grid(3, 0, (stage,)), "1f1b", 0, clip=False)
