"""`samestep verify` as a command: what it prints, how it ends, what it leaves behind, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import samestep
from samestep.cli import main
from samestep.commands.exit_codes import print_json
from samestep.errors import JobRefused, Refused
from samestep.launch.run.launcher import Launcher
from samestep.verification.causes import Cause, Finding
from samestep.verification.job.up_to_rounding import RoundingDistance
from samestep.verification.job.verdict import Verdict

TESTS = Path(__file__).parents[1]
ZOO = TESTS / "zoo" / "own_jobs.py"
GRIDS = TESTS / "jobs" / "grids.py"
SCRIPT = TESTS / "zoo" / "scripts" / "fails.py"


def verified(*options: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, options)])


def test_the_command_says_that_the_step_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # asked for anew
    shown = verified(f"{ZOO}:right", "--workers", 4, "--json")
    assert shown.exit_code == 0, shown.output
    assert "the same as one worker with the same numerics, bit for bit" in shown.stdout
    assert "the plain step on the whole batch up to rounding" in shown.stdout
    found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    assert found["same"]
    assert found["compared"]["gradient"] > 0
    assert not list(tmp_path.glob("samestep*"))


def test_the_command_names_what_differs_and_fails() -> None:
    shown = verified(f"{ZOO}:added_twice", "--workers", 2, "--quiet", "--json")
    assert shown.exit_code == 1
    assert "double counting: step 0, gradient first.weight, worker 0" in shown.stdout
    found = json.loads(shown.stdout.splitlines()[-1])
    assert not found["same"]
    assert found["same_bits"]["cause"] == "double counting"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere.py"], "there is no file nowhere.py"),
        ([f"{ZOO}:right", "--workers", 9], "9 workers are more than the 4 shards"),
        ([f"{ZOO}:right", "--memory-limit", "1GB"], "leave --memory-limit and --device out"),
        ([f"{ZOO}:right", "--steps", 0], "at least 1"),
        ([f"{ZOO}:missing"], "missing"),
        (["--script", SCRIPT, "--seed", 0], "--seed is for jobs of samestep's"),
        (["--script", SCRIPT, "--memory-limit", "1GB"], "--memory-limit is for jobs of samestep's"),
        (["--script", SCRIPT, "--probe"], "--probe is for jobs of samestep's"),
        (["--script", SCRIPT, "--set", "lr=1"], "--set is for jobs of samestep's"),
        (["--script", SCRIPT, "--steps", 0], "0 steps: give at least 1"),
        (["--script", SCRIPT, "--workers", 0], "0 workers: "),
        (["--script", SCRIPT, "--timeout", 0], "--timeout"),
    ],
)
def test_what_cannot_be_verified_is_refused(options: list[object], said: str) -> None:
    shown = verified(*options)
    assert shown.exit_code == 2, shown.output
    assert said in shown.stderr


def test_python_is_refused_what_there_is_not(launcher: Launcher) -> None:
    with pytest.raises(JobRefused, match="verify has no option epochs"):
        samestep.verify(f"{ZOO}:right", epochs=1, launcher=launcher)
    with pytest.raises(Refused, match="9 workers"):
        samestep.verify(f"{ZOO}:right", workers=9, launcher=launcher)


@pytest.mark.parametrize("plan", ["slices", "pipeline"])
def test_plans_with_slices_and_stages_are_verified_layer_by_layer(plan: str, launcher: Launcher) -> None:
    verdict = samestep.verify(f"{GRIDS}:mlp", plan=plan, workers=2, launcher=launcher)
    assert verdict.is_same, verdict.text()
    assert {"rows", "weights", "activation", "local gradient", "gradient", "parameter"} <= set(verdict.compared)


@pytest.mark.parametrize("sync", ["stale(1)", "local(2)"])
def test_a_policy_is_verified_against_one_worker_with_the_same(sync: str, launcher: Launcher) -> None:
    verdict = samestep.verify(f"{GRIDS}:mlp", plan="data", workers=2, sync=sync, launcher=launcher)
    assert verdict.is_same, verdict.text()
    assert any(f"workers agree by {sync}" in warning for warning in verdict.warnings)


def test_random_numbers_in_forward_are_said_and_not_held_against_the_plain_step(launcher: Launcher) -> None:
    verdict = samestep.verify(f"{GRIDS}:encoder", plan="data", workers=2, launcher=launcher)
    assert verdict.is_same, verdict.text()
    assert any("draws random numbers" in warning for warning in verdict.warnings)


def test_batch_normalisation_is_said(launcher: Launcher) -> None:
    verdict = samestep.verify(f"{GRIDS}:cnn", plan="data", workers=2, launcher=launcher)
    assert verdict.is_same, verdict.text()
    assert any("sync_batchnorm=True" in warning for warning in verdict.warnings)


def test_a_distance_without_end_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(Cause.OPTIMIZER_STATE, 0, "optimizer state", "w", "", distance=float("inf"))
    far = RoundingDistance(0, "loss", "", float("nan"), 1e-6)
    print_json(Verdict("", 1, None, finding, None, {}, far, 0).as_json())
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["same_bits"]["distance"], found["furthest"]["distance"]) == (None, None)
