"""What a plan says it moves is what the transports count; and what `samestep plan` shows of it."""

import sys
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

import samestep
from samestep.cli import main
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher

JOBS = str(Path(__file__).parents[2] / "jobs" / "grids.py")


def request(family: str, plan: str, workers: int) -> Request:
    return Request.of(
        run=uuid.uuid4().hex, file=JOBS, function=family, plan=plan, workers=workers, default_workers=2,
        folder=str(Path.cwd()), path=tuple(sys.path),
    )  # fmt: skip


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("plan", ["data", "slices", "hybrid", "pipeline"])
@pytest.mark.parametrize("family", ["cnn", "gpt", "resnet", "embedding"])
def test_the_bytes_moved_are_those_of_the_plan(family: str, plan: str, workers: int, launcher: Launcher) -> None:
    report = samestep.train(f"{JOBS}:{family}", plan=plan, workers=workers, steps=1, launcher=launcher)
    said = launcher.outline(request(family, plan, workers))["moved"]
    counted = sum(times.moved for times in report.times)
    assert counted > 0
    assert sum(said.values()) == pytest.approx(counted, rel=0.01)


def test_one_worker_moves_nothing(launcher: Launcher) -> None:
    report = samestep.train(f"{JOBS}:cnn", plan="hybrid", workers=1, steps=1, launcher=launcher)
    assert [times.moved for times in report.times] == [0]


def test_the_command_shows_plan_needs_and_schedule_and_trains_nothing(tmp_path: Path) -> None:
    svg = tmp_path / "step.svg"
    arguments = ["plan", f"{JOBS}:gpt", "--plan", "pipeline", "--workers", "2", "--draw", "--svg", str(svg)]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert 'first = "blocks.' in shown.stdout
    assert "worker 1: computes with" in shown.stdout
    assert "moved per step:" in shown.stdout
    assert "worker 0   F0 F1" in shown.stdout
    assert svg.read_text().startswith("<svg")
    assert "digest" not in shown.output


def test_what_a_preset_leaves_whole_is_listed_with_the_reason() -> None:
    shown = CliRunner().invoke(main, ["plan", f"{JOBS}:gpt", "--plan", "slices", "--workers", "2"])
    assert "tokens: its weight is tied to another layer's" in shown.stdout
    assert "norm: a LayerNorm is none of" in shown.stdout


def test_a_plan_that_cannot_be_is_refused_by_the_command_too() -> None:
    shown = CliRunner().invoke(main, ["plan", f"{JOBS}:gpt", "--plan", "nobody.toml"])
    assert shown.exit_code == 2
    assert "neither a known plan (auto, data, slices, hybrid, pipeline) nor a file" in shown.stderr


PLANS_AND_HOSTS = [
    *[("cnn", plan, (2, 2), "none") for plan in ("data", "slices", "hybrid", "pipeline")],
    *[("gpt", plan, (1, 2, 1), "none") for plan in ("data", "slices", "hybrid", "pipeline")],
    ("cnn", "data", (1, 1), "int8@1"),
    ("gpt", "data", (1, 2, 1), "int8@1"),
]


@pytest.mark.parametrize(("family", "plan", "hosts", "codec"), PLANS_AND_HOSTS)
def test_the_bytes_between_hosts_are_those_of_the_plan(
    family: str, plan: str, hosts: tuple[int, ...], codec: str, launcher: Launcher
) -> None:
    """Counted where they arrive. Headers and records, which do not grow with the model, are counted apart."""
    options = {"plan": plan, "workers": sum(hosts), "hosts": hosts, "codec": codec}
    counted = []
    for steps in (1, 2):  # one step alone: the second one's; digest and times at the end are no part of a step
        report = samestep.train(f"{JOBS}:{family}", transport="threads", steps=steps, launcher=launcher, **options)
        counted.append([sum(getattr(t, kind) for t in report.times) for kind in ("moved", "wired", "framed")])
    moved, wired, framed = (b - a for a, b in zip(*counted, strict=True))
    asked = request(family, plan, sum(hosts)).but(hosts=hosts, transport="threads", codec=codec)
    said = launcher.outline(asked)
    assert sum(said["moved"].values()) == pytest.approx(moved, rel=0.02)
    assert sum(said["wired"].values()) == pytest.approx(wired - framed, rel=0.02)
