"""Orders that a person writes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.schedule.checker import check
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders.pipeline import ORDERS
from samestep.schedule.orders.work import works_of
from samestep.schedule.orders.written import parse_order, spell_order, stages_split, written_order
from schedule.grids import DENSE, any_grid, schedules_of, straight, works

GOOD = ("F0.0 F0.1 B0.0 B0.1", "F1.0 B1.0 F1.1 B1.1")
SPLIT = Grid(2, 1, (StageGrid((0, 1), (1, 1), DENSE),))


@given(any_grid(), st.sampled_from(sorted(ORDERS)))
def test_what_is_written_is_read(grid: Grid, order: str) -> None:
    lines = works(grid, order)
    read = parse_order(lines, grid)
    assert list(spell_order(read)) == lines
    assert schedules_of(grid, read) == schedules_of(grid, order)


def test_a_text_has_a_line_per_worker() -> None:
    assert parse_order("\n".join(GOOD), straight(2, 2)) == parse_order(GOOD, straight(2, 2))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (GOOD[:1], r"order has 1 lines of work, the plan 2 workers: write one per worker"),
        (("F0.0 G0.1 B0.0 B0.1", GOOD[1]), r"worker 0, position 1, 'G0.1' is no work: write F<stage>.<set>"),
        (("F0.0 F01 B0.0 B0.1", GOOD[1]), r"worker 0, position 1, 'F01' is no work"),
        (("F0.0 F2.1 B0.0 B0.1", GOOD[1]), r"'F2.1' names stage 2; the stages are 0 to 1"),
        (("F0.0 F0.2 B0.0 B0.1", GOOD[1]), r"'F0.2' names set 2; the sets are 0 to 1"),
        (("F0.0 F1.1 B0.0 B0.1", GOOD[1]), r"position 1, 'F1.1': stage 1 is worker 1's; move it there"),
        (("F0.0 F0.0 B0.0 B0.1", GOOD[1]), r"position 1, 'F0.0' is there twice, first at position 0: remove one"),
        (("F0.0 B0.0 B0.1 F0.1", GOOD[1]), r"position 2, 'B0.1' comes before F0.1: a backward follows its forward"),
        (("F0.1 F0.0 B0.0 B0.1", GOOD[1]), r"position 0, 'F0.1' comes before F0.0: a stage takes its sets in incr"),
        ((GOOD[0], "F1.0 F1.1 B1.1 B1.0"), r"worker 1, position 2, 'B1.1' comes before B1.0.*in shard order"),
        (("F0.0 F0.1 B0.0", GOOD[1]), r"worker 0 has no B0.1: add what is missing"),
        (("", GOOD[1]), r"worker 0 has no F0.0 B0.0 F0.1 B0.1"),
    ],
)
def test_what_is_wrong_is_named(lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(PlanRefused, match=words):
        parse_order(lines, straight(2, 2))


def test_a_stage_with_weight_gradients_has_them_for_every_set() -> None:
    lines = ("F0.0 F0.1 B0.0 B0.1", "F1.0 B1.0 F1.1 B1.1 W1.0 W1.1")
    assert stages_split(lines) == {1}
    assert stages_split(GOOD) == frozenset()
    grid = with_split(straight(2, 2), {1})
    check(grid, schedules_of(grid, parse_order(lines, grid)), capacity=1)
    for line, words in [
        ("F1.0 B1.0 F1.1 B1.1 W1.0", "worker 1 has no W1.1: add what is missing"),
        ("F1.0 W1.0 B1.0 F1.1 B1.1 W1.1", "'W1.0' comes before B1.0: weights' gradients follow their backward"),
        ("F1.0 B1.0 F1.1 B1.1 W1.1 W1.0", "position 4, 'W1.1' comes before W1.0.*in shard order"),
        ("W0.0 F1.0 B1.0 F1.1 B1.1 W1.0 W1.1", "'W0.0': stage 0 makes its weights' gradients in B; remove it"),
    ]:
        with pytest.raises(PlanRefused, match=words):
            parse_order((lines[0], line), grid)


@given(any_grid(), st.sampled_from(sorted(ORDERS)), st.data())
def test_what_a_short_batch_lacks_is_left_out(grid: Grid, order: str, data: st.DataObject) -> None:
    """And what is left can be run: the checker says so."""
    lines, shards = tuple(works(grid, order)), data.draw(st.integers(1, grid.num_shards))
    short = replace(grid, num_shards=shards)
    read = written_order(lines, short, grid.num_shards)
    assert [sorted(map(str, line)) for line in read] == [
        sorted(map(str, works_of(short, rank))) for rank in range(grid.num_workers)
    ]
    check(short, schedules_of(short, read), capacity=1000)


def with_split(grid: Grid, stages: set[int]) -> Grid:
    return replace(grid, stages=tuple(replace(here, split=p in stages) for p, here in enumerate(grid.stages)))


def test_a_set_that_is_another_replicas() -> None:
    with pytest.raises(PlanRefused, match=r"worker 0 has no shard of set 1 at this stage; remove it"):
        parse_order(["F0.0 F0.1", "F0.1 B0.1"], SPLIT)


def test_one_that_deadlocks_is_readable_and_refused_with_its_circle() -> None:
    """Each worker is right by itself: worker 0 wants a set back before it gives the next, worker 1 wants both."""
    grid = straight(2, 2)
    order = parse_order(["F0.0 B0.0 F0.1 B0.1", "F1.0 F1.1 B1.0 B1.1"], grid)
    with pytest.raises(PlanRefused, match=r"deadlock: worker 0.*ReceiveGradient.*worker 1.*Receive.*worker 0"):
        check(grid, schedules_of(grid, order), capacity=8)
