"""Time to a loss, from what was measured: no processes."""

from xml.etree import ElementTree

import pytest

from samestep.bench.policies_picture import POINTS, curve_of, policies_picture
from samestep.bench.policies_table import policies_table
from samestep.bench.policy_comparison import Course, compare_courses, policies_of
from samestep.errors import PlanRefused

EXACT = Course("exact", (4.0, 3.0, 2.0, 2.0), (1.0, 2.0, 3.0, 4.0), 2.2, 8e6, 4e6)
FAST = Course("local(4)", (4.0, 3.0, 3.0, 1.0), (0.5, 1.0, 1.5, 2.0), 2.1, 2e6, 1e6, {"divergence": 0.1, "meetings": 1})
LATE = Course(
    "stale(1)", (4.0, 4.0, 3.0, 2.0), (0.7, 1.4, 2.1, 2.8), seen={"staleness": 1, "divergence": 0.02, "updates": 3}
)
NONE = Course("stale(1)", refused="this plan cannot serve it")


def test_losses_are_means_of_a_window() -> None:
    assert EXACT.smoothed(1) == [4.0, 3.0, 2.0, 2.0]
    assert EXACT.smoothed(2) == [3.5, 2.5, 2.0]
    assert EXACT.smoothed(4) == [2.75]


def test_the_target_is_reached_when_the_window_ends() -> None:
    assert EXACT.reaches(2.5, 2) == 3.0, "the mean of steps 1 and 2, after three seconds"
    assert EXACT.reaches(4.0, 1) == 1.0
    assert EXACT.reaches(1.9, 2) is None


def test_the_target_is_what_exact_steps_come_to() -> None:
    found = compare_courses([FAST, NONE, EXACT], None, 2)
    assert found.target == 2.0
    assert found.courses == (FAST, NONE, EXACT), "in the order in which they were given"
    assert compare_courses([FAST, EXACT], 2.5, 2).target == 2.5
    assert compare_courses([FAST], None, 2).target == 2.0, "without exact, what the first one comes to"
    assert compare_courses([EXACT], None, 99).window == 4, "no longer than the run"


def test_a_table_says_who_is_first() -> None:
    lines = policies_table(compare_courses([EXACT, FAST, NONE], None, 2)).splitlines()
    assert lines[0].startswith("policy ")
    assert lines[0].endswith("to target, s  times faster")
    assert lines[1].split() == ["exact", "1000", "2.0000", "+0.0%", "2.2000", "8", "4", "4", "1.00"]
    assert lines[2].split() == ["local(4)", "500", "2.0000", "+0.0%", "2.1000", "2", "1", "2", "2.00"]
    assert lines[3] == "stale(1): this plan cannot serve it"
    assert "local(4): parameters up to 10.00% from their mean before 1 meetings" in lines
    late = policies_table(compare_courses([EXACT, LATE], None, 2)).splitlines()[-1]
    assert late == (
        "stale(1): gradients applied at most 1 updates late, to parameters up to 2.00% from those that they were "
        "computed on"
    )


def test_who_never_comes_there_is_told() -> None:
    text = policies_table(compare_courses([EXACT, FAST], 1.5, 1))
    assert text.splitlines()[1].split()[-2:] == ["never", "-"]


def test_a_picture_is_whole_and_not_endless() -> None:
    steps = 10_000
    long = Course("exact", tuple(4 - i / steps for i in range(steps)), tuple(float(i + 1) for i in range(steps)))
    assert len(curve_of(long, 10)) <= POINTS + 1
    assert curve_of(long, 10)[-1][0] == steps
    root = ElementTree.fromstring(policies_picture(compare_courses([long, EXACT, NONE], None, None), "a < b"))
    assert len(root.findall("{*}polyline")) == 2
    assert root.findtext("{*}title") == "a < b"


def test_a_loss_that_is_no_number_has_no_place_in_a_picture() -> None:
    bad = Course("local(2)", (4.0, float("nan"), 3.0), (1.0, 2.0, 3.0))
    assert "nan" not in policies_picture(compare_courses([EXACT, bad], None, 1), "title")


def test_policies_are_spelled_out_once() -> None:
    assert policies_of("exact stale:0 local:4 local(4)") == ["exact", "local(4)"]
    with pytest.raises(PlanRefused, match="names no policy"):
        policies_of(" ")
    with pytest.raises(PlanRefused, match="give at least 1 step"):
        policies_of("exact local(0)")


def test_nothing_to_compare_says_why() -> None:
    with pytest.raises(PlanRefused, match=r"stale\(1\): this plan cannot serve it"):
        compare_courses([NONE], None, None)
