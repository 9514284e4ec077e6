"""The list scheduler: it reproduces the classical orders, keeps its caps, and never ends later than 1f1b."""

from collections.abc import Sequence
from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.schedule.actions import Action, Backward, BackwardWeight, Forward
from samestep.schedule.checker import check
from samestep.schedule.draw import Times, scheduled_bars, total_length
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders import greedy
from samestep.schedule.orders.greedy import greedy_order, longest_first, most_held, race_by_rule
from samestep.schedule.orders.pipeline import ORDERS
from samestep.schedule.orders.race import WorkTimes
from samestep.schedule.orders.work import Works, works_of
from samestep.schedule.orders.written import parse_order, spell_order
from samestep.schedule.places import places
from samestep.schedule.simulator import simulate
from schedule.grids import DENSE, SLICED, any_grid, schedules_of, straight

EVEN = WorkTimes(1, 2)
paces = st.builds(WorkTimes, st.integers(0, 9), st.integers(0, 18), st.integers(0, 9))


def length(grid: Grid, order: str | tuple[Works, ...], paces: Sequence[WorkTimes], latency: float = 0.0) -> float:
    """By the simulator of actions, which knows nothing of races. Segments are stages, sets are shards."""

    def cost(_: int, action: Action) -> float:
        kind = {Forward: "F", Backward: "B", BackwardWeight: "W"}.get(type(action))
        return paces[action.segment].of(kind) if kind else 0.0  # type: ignore[union-attr, arg-type]

    outcome = simulate(grid, schedules_of(grid, order), cost=cost, latency=latency)
    return max(span.stop for spans in outcome.spans for span in spans)


@st.composite
def pipelines(draw: st.DrawFn) -> Grid:
    """Single workers, dealt out in any way; sets of one shard."""
    workers, sets, split = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.booleans())
    dealt = draw(st.lists(st.integers(0, workers - 1), max_size=3)) + list(draw(st.permutations(range(workers))))
    return Grid(sets, 1, tuple(StageGrid((worker,), (sets,), DENSE, split=split) for worker in dealt))


@pytest.mark.parametrize(("p", "m", "latency"), [(1, 3, 0), (2, 1, 0), (4, 4, 0), (4, 9, 1), (8, 32, 0), (8, 64, 1)])
def test_even_stages_take_as_long_as_1f1b_and_without_a_cap_as_long_as_gpipe(p: int, m: int, latency: int) -> None:
    """The rule alone does it, without the classical orders among its rivals."""
    grid = straight(p, m)
    caps = [p - r for r in range(p)]
    times = Times(latency=latency)
    for limits, order in ((caps, "1f1b"), ([inf] * p, "gpipe")):
        race = race_by_rule(places(grid), [EVEN] * p, latency, limits, longest_first)
        assert race.end == total_length(scheduled_bars(grid, schedules_of(grid, order), times))
    assert length(grid, greedy_order(grid, [EVEN] * p, latency, caps), [EVEN] * p, latency) == length(
        grid, "1f1b", [EVEN] * p, latency
    )


def test_room_for_deeper_warm_ups_hides_latency() -> None:
    """Eight stages, 64 sets, messages that take as long as a forward: gpipe's 227 units with 15 sets for 64."""
    grid = straight(8, 64)
    order = greedy_order(grid, [EVEN] * 8, 1, [15] * 8)
    assert length(grid, order, [EVEN] * 8, 1) == 227
    assert max(most_held(places(grid), rank, line) for rank, line in enumerate(order)) <= 15


def test_weight_gradients_apart_are_as_good_as_zero_bubble() -> None:
    """And nothing is better: the last worker has to wait for three forwards."""
    even = WorkTimes(1, 1, 1)
    grid = straight(4, 12, split=True)
    assert length(grid, greedy_order(grid, [even] * 4, 0, [4] * 4), [even] * 4) == 3 + 3 * 12


def test_the_example_of_the_docstring() -> None:
    uneven = [WorkTimes(1, 1), WorkTimes(3, 3), WorkTimes(1, 4)]
    grid = straight(3, 4)
    order = greedy_order(grid, uneven, 0, [3, 3, 3])
    lines = [f"    worker {rank}   {line}" for rank, line in enumerate(spell_order(order))]
    assert "\n".join(lines) in (greedy.__doc__ or "")
    assert (length(grid, order, uneven), length(grid, "1f1b", uneven)) == (28, 30)


@given(pipelines(), st.data(), st.integers(0, 3))
def test_never_later_than_1f1b_with_what_1f1b_keeps(grid: Grid, data: st.DataObject, latency: int) -> None:
    uneven = data.draw(st.lists(paces, min_size=len(grid.stages), max_size=len(grid.stages)))
    where = places(grid)
    own = [tuple(ORDERS["1f1b"](grid, rank, 1)) for rank in range(grid.num_workers)]
    held = [most_held(where, rank, line) for rank, line in enumerate(own)]
    caps = [max(cap, sum(rank in s.workers for s in grid.stages)) for rank, cap in enumerate(held)]
    order = greedy_order(grid, uneven, latency, caps)
    assert length(grid, order, uneven, latency) <= length(grid, "1f1b", uneven, latency)


@given(pipelines(), st.data(), st.integers(0, 3))
def test_caps_hold_and_races_are_simulated_steps(grid: Grid, data: st.DataObject, latency: int) -> None:
    """For every rule, with the least caps possible and larger ones."""
    uneven = data.draw(st.lists(paces, min_size=len(grid.stages), max_size=len(grid.stages)))
    caps = [
        sum(rank in stage.workers for stage in grid.stages) + data.draw(st.integers(0, 3))
        for rank in range(grid.num_workers)
    ]
    for rule in greedy.RULES:
        race = race_by_rule(places(grid), uneven, latency, caps, rule)
        order = tuple(tuple(racer.taken) for racer in race.racers)
        assert all(most_held(places(grid), rank, line) <= caps[rank] for rank, line in enumerate(order))
        assert length(grid, order, uneven, latency) == race.end


@given(any_grid(), st.data(), st.integers(0, 2))
def test_any_grid_has_an_order_that_runs_and_can_be_written_down(grid: Grid, data: st.DataObject, latency: int) -> None:
    uneven = data.draw(st.lists(paces, min_size=len(grid.stages), max_size=len(grid.stages)))
    tight = [sum(rank in stage.workers for stage in grid.stages) for rank in range(grid.num_workers)]
    caps = data.draw(st.sampled_from([None, tight]))
    order = greedy_order(grid, uneven, latency, caps)
    for rank, line in enumerate(order):
        assert sorted(map(str, line)) == sorted(map(str, works_of(grid, rank)))
    check(grid, schedules_of(grid, order), capacity=1000)
    assert parse_order(spell_order(order), grid) == order
    assert greedy_order(grid, uneven, latency, caps) == order


def test_a_bottleneck_is_never_idle_once_it_has_begun() -> None:
    """The stage that takes longest, with room enough: work comes in faster than it goes."""
    uneven = [WorkTimes(1, 1), WorkTimes(5, 10), WorkTimes(2, 2)]
    grid = straight(3, 8)
    caps = [8, ceil(8 / 2), 8]
    assert length(grid, greedy_order(grid, uneven, 0, caps), uneven) == 1 + 8 * 15 + 1


@pytest.mark.parametrize(
    ("chosen", "latency", "caps", "words"),
    [
        ([EVEN], 0, None, "1 paces for 2 stages: give every stage one"),
        ([EVEN, WorkTimes(1, -1)], 0, None, "durations are finite, and 0 or more"),
        ([EVEN, WorkTimes(1, inf)], 0, None, "durations are finite"),
        ([EVEN, EVEN], -1, None, "latency -1.*0 or more"),
        ([EVEN, EVEN], 0, [1], "1 caps for 2 workers: give every worker one"),
        ([EVEN, EVEN], 0, [1, 0], "worker 1 may keep 0 sets and has 1 stages.*allow 1 at least"),
    ],
)
def test_what_cannot_be_is_refused(chosen: list[WorkTimes], latency: float, caps: list[int] | None, words: str) -> None:
    with pytest.raises(PlanRefused, match=words):
        greedy_order(straight(2, 3), chosen, latency, caps)


def test_where_groups_overlap_a_cap_may_have_to_give_way() -> None:
    """Worker 0 is full of sets that need others, who wait for one that worker 0 would have to let in."""
    stages = (
        StageGrid((0, 2, 1), (2, 1, 2), DENSE),
        StageGrid((1, 0), (2, 3), DENSE),
        StageGrid((0,), (5,), DENSE),
        StageGrid((2, 1), (5, 0), SLICED),
        StageGrid((2, 0, 1), (3, 0, 2), SLICED),
    )
    grid, caps = Grid(5, 1, stages), [4, 4, 3]
    race = race_by_rule(places(grid), [WorkTimes(1, 1)] * 5, 0, caps, longest_first)
    order = tuple(tuple(racer.taken) for racer in race.racers)
    assert [most_held(places(grid), rank, line) for rank, line in enumerate(order)] == [5, 4, 3]
    check(grid, schedules_of(grid, order), capacity=1000)
