"""Orders: the classical lists, and what holds for every grid."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.schedule.checker import check
from samestep.schedule.draw import Times, schedule_text, scheduled_bars, total_length
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders.pipeline import ORDERS, equal_rounds, order_named
from samestep.schedule.orders.work import works_of
from schedule.grids import DENSE, SLICED, any_grid, grid_of, schedules_of, skewed, straight, works


def test_gpipe_is_all_forwards_then_all_backwards() -> None:
    assert works(straight(3, 4), "gpipe") == [
        f"F{p}.0 F{p}.1 F{p}.2 F{p}.3 B{p}.0 B{p}.1 B{p}.2 B{p}.3" for p in range(3)
    ]


def test_1f1b_on_four_workers() -> None:
    assert works(straight(4, 6), "1f1b") == [
        "F0.0 F0.1 F0.2 F0.3 B0.0 F0.4 B0.1 F0.5 B0.2 B0.3 B0.4 B0.5",
        "F1.0 F1.1 F1.2 B1.0 F1.3 B1.1 F1.4 B1.2 F1.5 B1.3 B1.4 B1.5",
        "F2.0 F2.1 B2.0 F2.2 B2.1 F2.3 B2.2 F2.4 B2.3 F2.5 B2.4 B2.5",
        "F3.0 B3.0 F3.1 B3.1 F3.2 B3.2 F3.3 B3.3 F3.4 B3.4 F3.5 B3.5",
    ]


def test_1f1b_with_a_double_warm_up() -> None:
    assert works(straight(3, 6), "1f1b", depth=2) == [
        "F0.0 F0.1 F0.2 F0.3 F0.4 B0.0 F0.5 B0.1 B0.2 B0.3 B0.4 B0.5",
        "F1.0 F1.1 F1.2 B1.0 F1.3 B1.1 F1.4 B1.2 F1.5 B1.3 B1.4 B1.5",
        "F2.0 B2.0 F2.1 B2.1 F2.2 B2.2 F2.3 B2.3 F2.4 B2.4 F2.5 B2.5",
    ]


def test_interleaved_on_two_workers_with_two_stages_each() -> None:
    assert works(straight(2, 4, 2), "interleaved") == [
        "F0.0 F0.1 F2.0 F2.1 F0.2 B2.0 F0.3 B2.1 F2.2 B0.0 F2.3 B0.1 B2.2 B2.3 B0.2 B0.3",
        "F1.0 F1.1 F3.0 B3.0 F3.1 B3.1 F1.2 B1.0 F1.3 B1.1 F3.2 B3.2 F3.3 B3.3 B1.2 B1.3",
    ]


@pytest.mark.parametrize(("p", "v", "m"), [(2, 3, 6), (4, 2, 8), (3, 4, 9), (8, 4, 32)])
def test_interleaved_is_the_published_formula(p: int, v: int, m: int) -> None:
    """Narayanan et al. 2021: warm-up 2(p-r-1) + (v-1)p, sets in rounds of p, chunks in order, then reversed."""
    for rank, line in enumerate(works(straight(p, m, v), "interleaved")):
        turns = [(number // (p * v), number % (p * v) // p, number % p) for number in range(m * v)]
        forwards = [f"F{chunk * p + rank}.{turn * p + i}" for turn, chunk, i in turns]
        backwards = [f"B{(v - 1 - chunk) * p + rank}.{turn * p + i}" for turn, chunk, i in turns]
        warm_up = min(m * v, 2 * (p - rank - 1) + (v - 1) * p)
        pairs = zip(forwards[warm_up:], backwards, strict=False)
        expected = [*forwards[:warm_up], *(work for pair in pairs for work in pair), *backwards[m * v - warm_up :]]
        assert line.split() == expected


def test_interleaved_with_one_stage_per_worker_is_1f1b() -> None:
    assert works(straight(4, 7), "interleaved", 2) == works(straight(4, 7), "1f1b", 2)


@pytest.mark.parametrize("order", ["1f1b", "interleaved"])
def test_one_stage_is_data_parallel(order: str) -> None:
    assert works(Grid(4, 1, (StageGrid((0, 1), (3, 1), DENSE),)), order) == [
        "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2",
        "F0.3 B0.3",
    ]
    assert works(Grid(4, 4, (StageGrid((0, 1), (4, 0), SLICED),)), order) == ["F0.0 B0.0"] * 2


def test_one_worker_takes_a_set_through_all_its_stages() -> None:
    grid = Grid(2, 1, tuple(StageGrid((0,), (2,), DENSE) for _ in range(3)))
    for order in ("1f1b", "interleaved"):
        assert works(grid, order) == ["F0.0 F1.0 F2.0 B2.0 B1.0 B0.0 F0.1 F1.1 F2.1 B2.1 B1.1 B0.1"]


def test_consecutive_stages_of_one_worker_are_one_chunk() -> None:
    """As good as one stage: else a worker would wait for its own first stage."""
    halves = Grid(8, 1, tuple(StageGrid((s // 2,), (8,), DENSE) for s in range(8)))
    whole, half = Times(forward=2, backward=4), Times(forward=1, backward=2)
    for order in ORDERS:
        time = total_length(scheduled_bars(straight(4, 8), schedules_of(straight(4, 8), order), whole))
        assert total_length(scheduled_bars(halves, schedules_of(halves, order), half)) == time


def test_a_replicated_stage_before_a_single_one() -> None:
    """PipeDream's 15-1, small: each replica takes its own sets, the last worker all of them."""
    grid = Grid(6, 1, (StageGrid((0, 1, 2), (1, 3, 2), DENSE), StageGrid((3,), (6,), DENSE)))
    assert works(grid, "1f1b") == [
        "F0.0 B0.0",
        "F0.1 F0.2 B0.1 F0.3 B0.2 B0.3",
        "F0.4 F0.5 B0.4 B0.5",
        "F1.0 B1.0 F1.1 B1.1 F1.2 B1.2 F1.3 B1.3 F1.4 B1.4 F1.5 B1.5",
    ]


def test_a_worker_without_shards_takes_part_where_a_segment_is_sliced() -> None:
    dense, sliced = (Grid(4, 2, (StageGrid((0, 1), (4, 0), here),)) for here in (DENSE, SLICED))
    assert works(dense, "1f1b")[1] == ""
    assert works(sliced, "1f1b")[1] == "F0.0 B0.0 F0.1 B0.1"


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_the_picture_of_an_order_is_what_it_does(name: str, order: object) -> None:
    grid = straight(2, 4, 2) if name == "interleaved" else straight(4, 4, split=name == "zero-bubble")
    picture = [line for line in (inspect.getdoc(order) or "").splitlines() if line.startswith("worker ")]
    drawn = schedule_text(grid, schedules_of(grid, name)).splitlines()
    assert len(picture) == len(drawn)
    for line, real in zip(picture, drawn, strict=True):
        assert real.startswith(line.removesuffix("...").rstrip())


@given(any_grid(), st.sampled_from(sorted(ORDERS)), st.integers(1, 3))
def test_every_worker_does_all_its_part_in_increasing_order(grid: Grid, order: str, depth: int) -> None:
    for rank in range(grid.num_workers):
        line = list(ORDERS[order](grid, rank, depth))
        assert sorted(map(str, line)) == sorted(map(str, works_of(grid, rank)))
        for kind in "FBW":
            for stage in range(len(grid.stages)):
                indices = [work.set_index for work in line if (work.kind, work.stage) == (kind, stage)]
                assert indices == sorted(indices)


@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 1), (4, 2), (4, 4), (4, 9), (8, 32)])
def test_activations_of_gpipe_and_1f1b(p: int, m: int) -> None:
    grid = straight(p, m)
    for order, peak in (("gpipe", lambda r: m), ("1f1b", lambda r: min(m, p - r))):
        found = check(grid, schedules_of(grid, order), capacity=1)
        assert [kept.activations for kept in found.peaks] == [peak(r) for r in range(p)]
        assert {at: kept.activations for at, kept in found.stage_peaks.items()} == {(r, r): peak(r) for r in range(p)}


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 4), (4, 2, 8), (4, 4, 16), (8, 4, 32)])
def test_activations_of_interleaved(p: int, v: int, m: int) -> None:
    """In chunks; a whole stage of 1f1b is v of them."""
    found = check(straight(p, m, v), schedules_of(straight(p, m, v), "interleaved"), capacity=p)
    assert [kept.activations for kept in found.peaks] == [
        min(m * v, 2 * (p - r - 1) + (v - 1) * p + 1) for r in range(p)
    ]


@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 2), (4, 4), (4, 11), (8, 32)])
@pytest.mark.parametrize(("f", "b"), [(1, 1), (1, 2), (2, 3)])
def test_the_bubble_of_gpipe_and_1f1b(p: int, m: int, f: int, b: int) -> None:
    for order in ("gpipe", "1f1b"):
        bars = scheduled_bars(straight(p, m), schedules_of(straight(p, m), order), Times(f, b))
        assert total_length(bars) - m * (f + b) == (p - 1) * (f + b)


@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 4), (4, 4), (4, 11), (8, 32)])
def test_weight_gradients_fill_the_bubble_with_the_memory_of_1f1b(p: int, m: int) -> None:
    """ZB-H1, F = B = W: (p - 1)(F + B - W) for (p - 1)(F + B + W), and at most p sets on any worker."""
    grid = straight(p, m, split=True)
    schedules = schedules_of(grid, "zero-bubble")
    assert total_length(scheduled_bars(grid, schedules)) - 3 * m == p - 1
    assert total_length(scheduled_bars(straight(p, m), schedules_of(straight(p, m), "1f1b"))) - 3 * m == 3 * (p - 1)
    assert [kept.activations for kept in check(grid, schedules, capacity=1).peaks] == [min(m, p)] * p


@given(any_grid(), st.integers(1, 3))
def test_whole_backwards_and_weight_gradients_apart_are_in_one_order(grid: Grid, depth: int) -> None:
    """Zero-bubble is 1f1b with gradients of weights in between, wherever there are any."""
    for rank in range(grid.num_workers):
        whole, parts = (list(ORDERS[name](grid, rank, depth)) for name in ("1f1b", "zero-bubble"))
        assert [work for work in whole if work.kind != "W"] == [work for work in parts if work.kind != "W"]


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 4), (4, 2, 4), (4, 2, 8), (3, 4, 9), (4, 4, 16), (8, 4, 32)])
@pytest.mark.parametrize(("f", "b"), [(1, 1), (1, 2)])
def test_the_bubble_of_interleaved(p: int, v: int, m: int, f: int, b: int) -> None:
    """A chunk takes f + b, so a worker's stages v (f + b), and a v-th of the bubble is (p - 1) (f + b)."""
    grid = straight(p, m, v)
    bars = scheduled_bars(grid, schedules_of(grid, "interleaved"), Times(f, b))
    assert total_length(bars) - m * v * (f + b) == (p - 1) * (f + b)


@pytest.mark.parametrize(("p", "v", "m"), [(4, 2, 7), (4, 2, 9), (3, 3, 10), (2, 4, 5), (8, 2, 21)])
def test_interleaved_is_as_good_when_sets_do_not_divide(p: int, v: int, m: int) -> None:
    bars = scheduled_bars(straight(p, m, v), schedules_of(straight(p, m, v), "interleaved"))
    assert total_length(bars) - m * v * 3 == (p - 1) * 3


def test_a_deeper_warm_up_hides_the_latency_of_links() -> None:
    """Eight stages, 64 sets, F = 1, B = 2, and messages that take 1: gpipe's time for a seventh of its memory."""
    grid, slow = straight(8, 64), Times(latency=1)
    time = {
        (order, depth): total_length(scheduled_bars(grid, schedules_of(grid, order, depth=depth), slow))
        for order, depth in (("gpipe", 1), ("1f1b", 1), ("1f1b", 2))
    }
    assert time == {("gpipe", 1): 227, ("1f1b", 1): 337, ("1f1b", 2): 227}
    assert check(grid, schedules_of(grid, "1f1b", depth=2), capacity=1).peaks[0].activations == 15


@pytest.mark.parametrize(
    ("dealt", "sets", "idle", "peaks"),
    [((0, 1, 0), 12, 0, (3, 2)), ((0, 1, 0, 1, 0), 12, 0, (5, 4)), ((0, 1, 2, 0, 1), 12, 6, (6, 4, 3))],
)
def test_stages_dealt_out_unevenly(dealt: tuple[int, ...], sets: int, idle: int, peaks: tuple[int, ...]) -> None:
    """The busiest worker of interleaved is as good as never idle, with a fraction of gpipe's activations."""
    grid = Grid(sets, 1, tuple(StageGrid((worker,), (sets,), DENSE) for worker in dealt))
    schedules = schedules_of(grid, "interleaved")
    assert total_length(scheduled_bars(grid, schedules)) == 3 * sets * dealt.count(0) + idle
    assert tuple(kept.activations for kept in check(grid, schedules, capacity=2).peaks) == peaks


def test_rounds_are_as_equal_as_can_be() -> None:
    assert equal_rounds(8, 4) == (4, 4)
    assert equal_rounds(9, 4) == (5, 4)
    assert equal_rounds(7, 4) == (7,)
    assert equal_rounds(2, 4) == (2,)


def test_an_order_that_is_not_known() -> None:
    with pytest.raises(PlanRefused, match=r"unknown order 'zigzag' \(known: gpipe, 1f1b, interleaved"):
        order_named("zigzag")


def test_an_order_is_the_same_every_time() -> None:
    for order in ORDERS:
        assert works(grid_of("overlapping", 5, 2, 13, 2), order) == works(grid_of("overlapping", 5, 2, 13, 2), order)


def test_skewed_shares_leave_workers_without_shards() -> None:
    assert skewed(2, 3) == (0, 0, 2)
