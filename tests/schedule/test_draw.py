"""Drawings come from the lists that are run."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.schedule.actions import Backward, Forward, ReceiveGradient, Schedule
from samestep.schedule.draw import Bar, Times, colour, schedule_svg, schedule_text, scheduled_bars, total_length
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders.pipeline import ORDERS
from samestep.schedule.passes import schedule_of
from schedule.grids import DENSE, SLICED, any_grid, schedules_of, straight

SVG = "{http://www.w3.org/2000/svg}"
PLAIN = Times()
JOINT = Grid(3, 2, (StageGrid((0, 1), (2, 1), SLICED),))


def drawn(grid: Grid, order: str, times: Times = PLAIN) -> list[str]:
    return schedule_text(grid, schedules_of(grid, order), times).splitlines()


def test_1f1b_as_text() -> None:
    assert drawn(straight(2, 2), "1f1b") == [
        "worker 0   F0 F1 .  .  B0 B0 .  B1 B1",
        "worker 1   .  F0 B0 B0 F1 B1 B1 .  .",
    ]


def test_a_link_with_latency_as_text() -> None:
    assert drawn(straight(2, 1), "1f1b", Times(1, 1, 2)) == [
        "worker 0   F0 .  .  .  .  .  .  B0",
        "worker 1   .  .  .  F0 B0 .  .  .",
    ]


def test_several_stages_are_named() -> None:
    assert drawn(straight(1, 1, 2), "1f1b") == ["worker 0   F0.0 F1.0 B1.0 B1.0 B0.0 B0.0"]


def test_recomputation_as_text() -> None:
    assert drawn(straight(1, 2, recompute=True), "1f1b") == ["worker 0   F0 R0 B0 B0 F1 R1 B1 B1"]


def test_weight_gradients_as_text() -> None:
    assert drawn(straight(2, 2, split=True), "zero-bubble") == [
        "worker 0   F0 F1 .  B0 W0 B1 W1",
        "worker 1   .  F0 B0 F1 B1 W0 W1",
    ]


def test_a_meeting_waits_for_the_last() -> None:
    """Worker 0 has two shards of the first set, worker 1 none."""
    assert drawn(JOINT, "gpipe", Times(1, 1)) == [
        "worker 0   F0   F1   F0-1 F0   F1   F2   B0   B1   B0-1 B0   B1   B2   .",
        "worker 1   .    .    F0-1 F2   .    F2   F2   .    B0-1 B2   .    B2   B2",
    ]


def test_lockstep_is_one_bar() -> None:
    grid = Grid(3, 1, (StageGrid((0, 1), (2, 1), DENSE),))
    schedules = [schedule_of(grid, "1f1b", rank, lockstep=True, clip=False) for rank in range(2)]
    assert scheduled_bars(grid, schedules) == (Bar(0, "FB", 0, "0-1", 0, 6), Bar(1, "FB", 0, "2", 0, 3))


def test_a_schedule_that_deadlocks_is_drawn_as_far_as_it_comes() -> None:
    stuck: Schedule = (Forward(0, 0), ReceiveGradient(0, 0, 1), Backward(0, 0))
    assert schedule_text(straight(2, 1), [stuck, ()]) == "worker 0   F0\nworker 1   ."


def test_a_step_without_work() -> None:
    grid = Grid(0, 1, (StageGrid((0,), (2,), DENSE),))
    assert drawn(grid, "1f1b") == ["worker 0"]
    ElementTree.fromstring(schedule_svg(grid, schedules_of(grid, "1f1b")))


@given(any_grid(), st.sampled_from(sorted(ORDERS)))
def test_the_picture_and_the_text_show_the_same_bars(grid: Grid, order: str) -> None:
    schedules = schedules_of(grid, order)
    bars = scheduled_bars(grid, schedules)
    for rank in range(grid.num_workers):
        mine = [bar for bar in bars if bar.worker == rank]
        assert all(one.stop <= other.start for one, other in pairwise(mine))
    cells = [cell for line in schedule_text(grid, schedules).splitlines() for cell in line.split()[2:]]
    assert sum(cell != "." for cell in cells) == sum(bar.stop - bar.start for bar in bars)
    picture = ElementTree.fromstring(schedule_svg(grid, schedules))
    assert len(picture.findall(f"{SVG}g")) == len(bars)


def test_the_picture_is_readable_without_seeing_it() -> None:
    grid = straight(4, 4)
    picture = ElementTree.fromstring(schedule_svg(grid, schedules_of(grid, "1f1b"), title="1F1B <four> & four"))
    assert picture.get("role") == "img"
    assert picture.get("aria-labelledby") == "title summary"
    assert picture.findtext(f"{SVG}title") == "1F1B <four> & four"
    assert picture.findtext(f"{SVG}desc") == (
        "4 shards through 4 stages on 4 workers take 21 units of time; 43% of it workers are idle."
    )
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"worker 0", "worker 3", "F0", "B3", "forward, stage 0", "backward, stage 3"} <= set(words)
    assert "recomputation, stage 0" not in words
    hovers = [title.text for title in picture.iter(f"{SVG}title")]
    assert "worker 3: B of shard 0 at stage 3, 4 to 6" in hovers


def test_the_picture_needs_nothing_from_outside() -> None:
    text = schedule_svg(straight(2, 2, recompute=True), schedules_of(straight(2, 2, recompute=True), "1f1b"))
    assert "href" not in text
    assert text.count("http") == 1  # its own name space
    assert 'id="hatch"' in text
    assert text == schedule_svg(straight(2, 2, recompute=True), schedules_of(straight(2, 2, recompute=True), "1f1b"))


@pytest.mark.parametrize("stages", [1, 2, 8, 32])
def test_colours_differ(stages: int) -> None:
    colours = {colour(stage, stages, kind) for stage in range(stages) for kind in "FBW"}
    assert len(colours) == 3 * stages


def luminance(colour_: str) -> float:
    parts = [int(colour_[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8, 16])
def test_names_can_be_read_on_their_colours(stages: int) -> None:
    """A contrast of 4.5, which WCAG asks of small text."""
    for stage in range(stages):
        assert 1.05 / (luminance(colour(stage, stages, "B")) + 0.05) >= 4.5
        for kind in "FW":
            assert (luminance(colour(stage, stages, kind)) + 0.05) / (luminance("#1a1a1a") + 0.05) >= 4.5


def test_the_length_is_that_of_the_longest_worker() -> None:
    assert total_length(scheduled_bars(straight(2, 2), schedules_of(straight(2, 2), "1f1b"))) == 9
    assert total_length(()) == 0
