"""`samestep plan` on a small job: measured once, then explained in all forms."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from samestep.cli import main
from samestep.plan.plan import Plan
from samestep.planner.cost.profile import Profile

CNN = f"{Path(__file__).parents[1] / 'jobs' / 'grids.py'}:cnn"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first command keeps what it measures."""
    return tmp_path_factory.mktemp("profile") / "cnn.json"


def planned(profile: Path, *options: object) -> Result:
    arguments: Sequence[object] = ("plan", CNN, "--workers", 2, "--profile", profile, *options)
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(profile: Path) -> Path:
    """With everything that one command can write."""
    folder = profile.parent
    (folder / "mine.toml").write_text('numerics = "shards=8"\nassign = [7, 1]\n')
    files = ("--html", folder / "plan.html", "--svg", folder / "step.svg", "--why-not", folder / "mine.toml")
    shown = planned(profile, "--draw", *files)
    assert shown.exit_code == 0, shown.output
    (folder / "shown.txt").write_text(shown.stdout)
    return folder


def test_the_plan_is_explained_and_drawn(folder: Path) -> None:
    text = (folder / "shown.txt").read_text()
    assert Profile.parse((folder / "cnn.json").read_text(), "profile").job == "cnn"
    for words in ("# a samestep plan", "moved per step", "a column is", " ms per step (", "runners-up:", "layers:"):
        assert words in text
    assert "norm1: whole (weights 0.064 KB" in text
    assert "a BatchNorm2d is none of Linear" in text
    assert f"why not {folder / 'mine.toml'}, as data 7,1: " in text


def test_the_page_and_the_picture_are_written(folder: Path) -> None:
    page = (folder / "plan.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<h2>Why not</h2>" in page
    assert (folder / "step.svg").read_text() in page


def test_as_json_it_is_one_object_that_says_the_same(folder: Path) -> None:
    shown = planned(folder / "cnn.json", "--json", "--why-not", "hybrid")
    found, text = json.loads(shown.stdout), (folder / "shown.txt").read_text()
    explained = found["explanation"]
    assert Plan.parse(found["plan"]).workers == 2
    assert f"{explained['name']}: " in text
    assert sum(explained["prediction"]["parts"].values()) == pytest.approx(explained["prediction"]["seconds"])
    assert all(flip["text"] in text for flip in explained["flips"])
    assert found["why_not"]["text"].startswith("hybrid, as slices on 2 (full, head): ")
    assert sum(needs["parameters"] for needs in found["memory"]) > 0


def test_what_cannot_be_read_or_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("assign = 7")
    for options, words in (
        (("--why-not", tmp_path / "mine.toml"), "has the fields"),
        (("--why-not", tmp_path / "none.toml"), "--why-not"),
        (("--html", tmp_path / "no folder" / "plan.html"), "must be a folder"),
    ):
        refused = planned(tmp_path / "not made.json", *options)
        assert refused.exit_code == 2
        assert words in refused.stderr
    assert not (tmp_path / "not made.json").exists()


def test_a_plan_that_is_given_is_not_explained(tmp_path: Path) -> None:
    refused = planned(tmp_path / "none.json", "--plan", "data", "--why-not", "hybrid")
    assert refused.exit_code == 2
    assert "nothing is chosen: leave --plan" in refused.stderr
    assert not (tmp_path / "none.json").exists()


def test_the_best_two_are_run_and_both_times_are_said(folder: Path) -> None:
    shown = planned(folder / "cnn.json", "--probe", "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)["explanation"]
    first, second = told["measured"]
    assert first.startswith(f"{told['name']}: ")
    assert " ms, predicted " in first
    assert " ms, predicted " in second
    assert not second.startswith(f"{told['name']}: ")


def test_nobody_is_run_where_nothing_is_chosen(tmp_path: Path) -> None:
    for options, words in (
        (("--plan", "data"), "--probe runs the best two plans and takes the faster, and --plan data names one"),
        (("--assign", "7,1"), "no plan is looked for: the command says who computes what"),
    ):
        refused = planned(tmp_path / "not made.json", "--probe", *options)
        assert refused.exit_code == 2
        assert words in refused.stderr


def test_a_forward_that_cannot_be_recorded_has_a_plan_without_its_memory() -> None:
    """Data parallelism needs no recording, so a plan for it must not fail for want of one."""
    shown = CliRunner().invoke(
        main,
        [
            "plan",
            str(Path(__file__).parents[1] / "jobs" / "plain_steps.py:cnn_sync"),
            "--plan",
            "data",
            "--workers",
            "2",
        ],
    )
    assert shown.exit_code == 0, shown.output
    assert "memory not counted: " in shown.stdout
    assert "sync_batchnorm" in shown.stdout
