"""`samestep bench`, the real command; and what is left of it however it ends."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from commands import Command, wait_until


@pytest.fixture(autouse=True)
def _cache_of_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch makes this folder when an optimizer takes its first step in any program, and leaves it for the next."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


JOB = Path(__file__).parents[1] / "jobs" / "compared.py"


def test_a_comparison_from_the_command_line(tmp_path: Path) -> None:
    ended = Command(tmp_path).run(
        "bench", f"{JOB}:mlp", "--only", "samestep data,plain 1,tp", "--workers", 2, "--slices", 2, "--seconds", 0.1,
        "--steps-per-round", 2, "--json", "--quiet", "--svg", "bars.svg", "--set", "batch_size=40",
        cold=True,
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    *text, last = ended.out.splitlines()
    found = json.loads(last)
    assert {one["name"] for one in found["contestants"]} == {"samestep data 2,2", "plain 1", "tp 2"}
    assert found["rounds"] == 3
    assert found["reference"] == found["regret"]["pick"] == "samestep data 2,2"
    assert any(line.startswith("regret of our pick, samestep data 2,2, among all: ") for line in text)
    assert (tmp_path / "bars.svg").read_text().startswith("<svg")


def test_policies_are_compared_by_the_time_to_a_loss(tmp_path: Path) -> None:
    ended = Command(tmp_path).run(
        "bench", f"{JOB}:mlp", "--workers", 2, "--steps", 6, "--sync", "exact stale:1 local:2 local(2,workers=1)",
        "--json", "--quiet", "--svg", "curves.svg",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    *text, last = ended.out.splitlines()
    exact, stale, local, one = json.loads(last)["policies"]
    assert [exact["policy"], local["policy"], one["policy"]] == ["exact", "local(2)", "local(2,workers=1)"]
    assert len(exact["losses"]) == len(local["losses"]) == len(local["seconds"]) == 6
    assert exact["seconds_to_target"] <= exact["seconds"][-1]
    assert local["seen"]["meetings"] == 3
    assert stale["seen"]["updates"] == 5
    assert any(line.startswith("stale(1): gradients applied at most 1 updates late") for line in text)
    assert any(line.startswith("local(2): parameters up to ") for line in text)
    assert 0 < local["moved"] < exact["moved"]
    assert "more than the 1 logical workers" in one["refused"]
    assert text[0].startswith("policy")
    assert (tmp_path / "curves.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "moon"], "samestep: --only moon: no contestant has that name"),
        (["--workers", "0"], "samestep: --workers 0: it must be a whole number of at least 1"),
        (["--sync", "local(0)"], "samestep: --sync 'local(0)': workers that never take a step never meet"),
        (["--sync", "", "--target-loss", "nan"], "samestep: --target-loss nan: give a finite loss"),
        (
            ["--sync", "", "--rounds", "3"],
            "samestep: --rounds is for the comparison of plans, --sync compares policies",
        ),
        (["--window", "3"], "samestep: --window is for --sync: leave it out"),
        (["--steps", "3"], "samestep: --steps is the length of training under --sync"),
        (["--set", "batch_size=1000"], "samestep: a batch of 1000 rows is larger than the data set of 200 rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = Command(tmp_path).run("bench", f"{JOB}:mlp", "--quiet", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(message)


def comparing(command: Command) -> "subprocess.Popen[str]":
    """A comparison without end, in its rounds."""
    started = command.start(
        "bench", f"{JOB}:mlp", "--only", "samestep data,ddp,plain 1", "--workers", 2, "--rounds", 10**6,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert started.stderr is not None
    while not started.stderr.readline().startswith("round 2"):
        assert started.poll() is None
    return started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_comparison_ends_at_once_with_130_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = Command(tmp_path)
    with comparing(command) as started:
        started.send_signal(number)
        ended = command.end(started)
    assert ended.code == 130
    assert ended.errors[-1] == "stopped before the comparison was done"


def test_nothing_outlives_a_killed_comparison(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with comparing(command) as started:
        started.kill()
        assert command.end(started).code == -signal.SIGKILL


def test_a_comparison_is_stopped_while_its_contenders_come_up(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.start("bench", f"{JOB}:mlp", "--workers", 2) as started:
        wait_until("contenders", lambda: len(command.processes()) > 4)
        started.send_signal(signal.SIGINT)
        assert command.end(started).code == 130
