"""`samestep trace` and `samestep train --trace`."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import Command

JOB = f"{Path(__file__).parents[1] / 'jobs' / 'grids.py'}:mlp"


def steps_in(file: Path) -> set[tuple[int, int]]:
    """Workers and steps."""
    found: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return {(event["tid"], event["args"]["step"]) for event in found if event["ph"] == "X"}


def test_trace_runs_twenty_steps_and_prints_the_summary_on_stdout(tmp_path: Path) -> None:
    ended = Command(tmp_path).run(
        "trace", JOB, "--workers", 2, "--plan", "pipeline", "--out", "t.json", "--quiet", cold=True
    )
    assert ended.code == 0, ended.err
    assert steps_in(tmp_path / "t.json") == {(rank, step) for rank in range(2) for step in range(20)}
    lines = ended.out.splitlines()
    assert lines[0].startswith("20 steps, ")
    assert any(line.startswith("the slowest is worker ") for line in lines)
    assert lines[-1] == "t.json: open it at ui.perfetto.dev or chrome://tracing"
    assert ended.err == ""


def test_a_training_traces_its_last_steps_and_keeps_stdout_for_the_report(tmp_path: Path) -> None:
    options = ("--steps", 5, "--trace", "t.json", "--trace-steps", 2, "--json")
    ended = Command(tmp_path).run("train", JOB, "--workers", 2, *options)
    assert ended.code == 0, ended.err
    assert steps_in(tmp_path / "t.json") == {(rank, step) for rank in range(2) for step in (3, 4)}
    assert json.loads(ended.out)["steps"] == 5
    assert any(line.startswith("2 steps, ") for line in ended.errors)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trace", JOB, "--out", "no/t.json"), "no/t.json cannot be written: no must be a folder"),
        (("train", JOB, "--trace-steps", 4), "say where to with --trace FILE"),
        (("train", JOB, "--trace", "t.json", "--trace-steps", 0), "--trace-steps 0: it must be a whole number"),
    ],
)
def test_what_cannot_be_traced_is_refused_before_training(
    tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    ended = Command(tmp_path).run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    [line] = ended.errors
    assert said in line
    assert list(tmp_path.glob("*.json")) == []
