import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.errors import JobRefused, TrainingFailed
from samestep.launch.run.launcher import Launcher

JOB = str(Path(__file__).parents[1] / "jobs" / "callbacks.py")


def train(launcher: Launcher, kind: str, where: Path, **options: Any) -> samestep.Report:
    settings = {"kind": kind, "where": str(where), **options.pop("settings", {})}
    return samestep.train(JOB, settings=settings, launcher=launcher, **{"workers": 2, **options})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("transport", ["processes", "threads"])
def test_one_line_per_step_whatever_the_number_of_workers(launcher: Launcher, tmp_path: Path, transport: str) -> None:
    report = train(launcher, "json", tmp_path / "log.jsonl", transport=transport)
    found = lines(tmp_path / "log.jsonl")
    assert [line["step"] for line in found] == list(range(6))
    assert [line["loss"] for line in found] == list(report.losses)
    assert [line["step"] for line in found if "metrics" in line] == [2, 5], "evaluated after every epoch"
    assert found[5]["metrics"] == dict(report.metrics)


def test_a_resumed_run_appends(launcher: Launcher, tmp_path: Path) -> None:
    log, folder = tmp_path / "log.jsonl", tmp_path / "checkpoints"
    first = train(launcher, "json", log, checkpoint=folder, steps=2)
    second = train(launcher, "json", log, checkpoint=folder, resume=True, workers=1)
    found = lines(log)
    assert [line["step"] for line in found] == list(range(6))
    assert [line["loss"] for line in found] == [*first.losses, *second.losses]


def test_what_json_has_no_number_for_is_null(launcher: Launcher, tmp_path: Path) -> None:
    report = train(launcher, "json", tmp_path / "log.jsonl", settings={"bad_row": True}, allow_nan=True)
    assert math.isnan(report.losses[-1])
    assert lines(tmp_path / "log.jsonl")[-1]["loss"] is None


def test_lines_of_a_run_that_failed_are_there(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="at step ") as failed:
        train(launcher, "json", tmp_path / "log.jsonl", settings={"bad_row": True}, seed=1)
    step = int(str(failed.value).partition("at step ")[2][0])
    assert step > 0, "choose a seed that does not put the bad row into the first batch"
    assert [line["step"] for line in lines(tmp_path / "log.jsonl")] == list(range(step))


def test_a_file_that_cannot_be_written_is_refused_before_training(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(samestep.Refused, match="must be a folder"):
        train(launcher, "json", tmp_path / "missing" / "log.jsonl")
    with pytest.raises(samestep.Refused, match="no folder"):
        train(launcher, "json", tmp_path)


def test_tensorboard_reads_back_losses_and_metrics(launcher: Launcher, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = train(launcher, "tensorboard", tmp_path / "board")
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["loss", "metrics/accuracy", "metrics/loss"]
    assert [event.step for event in found.Scalars("loss")] == list(range(6))
    assert [event.value for event in found.Scalars("loss")] == pytest.approx(list(report.losses), rel=1e-6)
    assert [event.step for event in found.Scalars("metrics/accuracy")] == [2, 5]
    assert found.Scalars("metrics/accuracy")[1].value == pytest.approx(report.metrics["accuracy"], rel=1e-6)


def test_without_tensorboard_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JobRefused, match=r"pip install samestep\[tensorboard\]"):
        samestep.TensorBoard(tmp_path)
