"""What is said of what was measured."""

import json
from xml.etree import ElementTree

import pytest

from samestep.bench.comparison import ComparisonResult, verdict_of
from samestep.bench.comparison_picture import comparison_picture
from samestep.bench.comparison_table import comparison_table
from samestep.bench.contestants import AGAIN, Contestant, chosen, peers, pick_of
from samestep.bench.rounds import Measurements
from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan

FOUR = str(Plan(Numerics(shards=4), (2, 2)))
FOUR_ALONE = str(Plan(Numerics(shards=4), (4,)))
EIGHT = str(Plan(Numerics(shards=8), (4, 4)))

CONTESTANTS = [
    Contestant("samestep data 2", FOUR, 0.010),
    Contestant("samestep data 1", FOUR_ALONE, 0.020),
    Contestant("samestep other 2", EIGHT, 0.030),
    Contestant("plain 1"),
    Contestant("tp 2"),
    Contestant("ddp 2"),
]
FOUND = {
    "samestep data 2": Measurements([0.012, 0.012, 0.012]),
    "samestep data 2" + AGAIN: Measurements([0.0126, 0.0126, 0.0126]),
    "samestep data 1": Measurements([0.0125, 0.0125, 0.0125]),
    "samestep other 2": Measurements([0.006, 0.006, 0.006]),
    "plain 1": Measurements([0.010, 0.010, 0.010], losses=[2.0, float("nan")]),
    "tp 2": Measurements(refused="no pair <of> layers"),
    "ddp 2": Measurements([0.001], failed="it ended"),
}


@pytest.fixture(scope="module")
def verdict() -> ComparisonResult:
    return verdict_of(CONTESTANTS, FOUND, "samestep data 2", pick_of(CONTESTANTS))


def test_the_fastest_comes_first_and_who_was_not_measured_last(verdict: ComparisonResult) -> None:
    names = [line.name for line in verdict.lines]
    assert names[:4] == ["samestep other 2", "plain 1", "samestep data 2", "samestep data 1"]
    assert {line.name: line.reason for line in verdict.lines[4:]} == {
        "tp 2": "does not apply: no pair <of> layers",
        "ddp 2": "failed: it ended",
    }


def test_the_reference_against_itself_is_the_noise_and_what_is_within_it_a_tie(verdict: ComparisonResult) -> None:
    assert verdict.noise == pytest.approx(0.05)
    near = {**FOUND, "plain 1": Measurements([0.00629, 0.00629, 0.00629])}  # 4.8 % from the best
    lines = verdict_of(CONTESTANTS, near, "samestep data 2", CONTESTANTS[0]).lines
    assert {line.name: line.is_tie for line in lines if line.seconds} == {
        "samestep other 2": True,
        "plain 1": True,
        "samestep data 2": False,
        "samestep data 1": False,
    }


def test_regret_is_among_plans_of_the_same_numerics_and_among_all(verdict: ComparisonResult) -> None:
    assert verdict.among_plans is not None
    assert verdict.among_all is not None
    assert (verdict.among_plans.best, verdict.among_plans.share) == ("samestep data 2", 0.0)
    assert (verdict.among_all.best, verdict.among_all.share) == ("samestep other 2", pytest.approx(1.0))
    other = verdict_of(CONTESTANTS, FOUND, "samestep data 2", CONTESTANTS[1]).among_plans
    assert other is not None
    assert (other.best, other.share, other.is_tie) == ("samestep data 2", pytest.approx(0.0125 / 0.012 - 1), True)


def test_our_pick_is_the_least_predicted_and_the_first_where_nobody_predicts() -> None:
    assert pick_of([CONTESTANTS[3], CONTESTANTS[1], CONTESTANTS[0]]) == CONTESTANTS[1]
    unpredicted = [Contestant("plain 1"), Contestant("b", FOUR), Contestant("a", EIGHT)]
    assert pick_of(unpredicted) == unpredicted[1]
    assert pick_of(unpredicted[:1]) is None


def test_predictions_are_graded(verdict: ComparisonResult) -> None:
    errors = {line.name: line.error for line in verdict.lines}
    assert errors["samestep data 2"] == pytest.approx(10 / 12 - 1)
    assert errors["plain 1"] is None


def test_the_text_has_everybody_and_the_regret(verdict: ComparisonResult) -> None:
    text = comparison_table(verdict)
    assert all(one.name in text for one in CONTESTANTS)
    assert "so that 5.0% is noise" in text
    assert "among all: 100.0 % (100.0 to 100.0) against samestep other 2" in text
    assert "tp 2: does not apply: no pair <of> layers" in text


def test_the_json_is_json_and_the_picture_well_formed(verdict: ComparisonResult) -> None:
    found = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert found["regret"]["best"] == "samestep data 2"
    assert found["contestants"][1]["losses"] == [2.0, None]
    root = ElementTree.fromstring(comparison_picture(verdict, "A <step>"))
    bars = [one for one in root.iter("{http://www.w3.org/2000/svg}rect") if one.get("fill") != "#ffffff"]
    assert len(bars) == 4


def test_nobody_measured_is_no_verdict_but_no_error_either() -> None:
    nobody = {one.name: Measurements(failed="it ended") for one in CONTESTANTS}
    found = verdict_of(CONTESTANTS, nobody, "samestep data 2", CONTESTANTS[0])
    assert (found.rounds, found.again, found.among_plans, found.among_all) == (0, None, None, None)
    assert "ddp 2: failed: it ended" in comparison_table(found)
    ElementTree.fromstring(comparison_picture(found, "nothing"))


def test_contestants_are_chosen_by_name_or_by_its_beginning() -> None:
    assert chosen(CONTESTANTS, []) == CONTESTANTS
    assert chosen(CONTESTANTS, ["samestep data", "plain"]) == [CONTESTANTS[0], CONTESTANTS[1], CONTESTANTS[3]]
    with pytest.raises(PlanRefused, match=r"--only pla: no contestant has that name \(known: samestep data 2, "):
        chosen(CONTESTANTS, ["pla"])


def test_one_worker_has_no_way_of_torch_for_many() -> None:
    assert [one.name for one in peers(1, 1)] == ["plain 1"]
    assert [one.name for one in peers(2, 4)] == ["plain 1", "plain 4", "ddp 2", "fsdp2 2", "tp 2", "pp 2"]
