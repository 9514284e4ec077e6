"""Workers that torchrun starts, and what it does when one of them ends."""

import json
import re
import socket
from pathlib import Path

import pytest

import samestep
from commands import Command, Ended
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).parents[2] / "jobs"
JOB = f"{JOBS / 'grids.py'}:mlp"
SCRIPT = Path(__file__).parents[2] / "scripts" / "joins.py"


@pytest.fixture(scope="module")
def digest(launcher: Launcher) -> str:
    """One worker's."""
    return samestep.train(JOB, workers=1, launcher=launcher).digest


def torchrun(folder: Path, processes: int, *arguments: object) -> Ended:
    own = ("--standalone", "--log-dir", folder / "logs", "--nproc-per-node", processes)
    return Command(folder).run(*own, *arguments, module="torch.distributed.run")


def test_three_workers_give_one_workers_digest_and_one_report(tmp_path: Path, digest: str) -> None:
    ended = torchrun(tmp_path, 3, "-m", "samestep", "train", JOB, "--json")
    assert ended.code == 0, ended.err
    [line] = ended.out.splitlines()
    report = json.loads(line)
    assert (report["digest"], report["assign"], len(report["times"])) == (digest, [3, 3, 2], 3)
    assert ended.err.count("3 workers (processes)") == 1


def test_worker_0_writes_the_trace_of_all(tmp_path: Path) -> None:
    ended = torchrun(tmp_path, 2, "-m", "samestep", "trace", JOB, "--steps", 4, "--out", tmp_path / "trace.json")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("4 steps, ")
    assert ended.out.count("the slowest is worker") == 1
    found = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = {(event["tid"], event["args"]["step"]) for event in found if event["ph"] == "X"}
    assert steps == {(rank, step) for rank in range(2) for step in range(4)}


def test_a_restart_after_a_kill_goes_on_from_the_checkpoint(tmp_path: Path, digest: str) -> None:
    """The second start finds in torchrun's store what the first one left there."""
    job = (JOBS / "mortal.py", "--set", "victim=1", "--set", "how=SIGKILL")
    keep = ("--checkpoint", tmp_path / "kept", "--every", 1, "--resume", "--json")
    ended = torchrun(tmp_path, 2, "--max-restarts", 1, "-m", "samestep", "train", *job, *keep)
    assert ended.code == 0, ended.err
    assert ended.err.count("2 of 2 workers up") == 2
    assert "going on after step 2" in ended.err
    assert json.loads(ended.out)["digest"] == digest


def test_a_worker_that_fails_is_named_in_one_line_and_the_others_name_it_too(tmp_path: Path) -> None:
    job = (JOBS / "mortal.py", "--set", "victim=1", "--set", "how=error", "--quiet")
    ended = torchrun(tmp_path, 2, "-m", "samestep", "train", *job)
    assert ended.code == 1
    host = socket.gethostname()
    [line] = [line for line in ended.errors if line.startswith(f"worker 1 on host {host} ")]
    assert re.fullmatch(rf"worker 1 on host {host} failed at step \d+: ValueError: the reason", line)
    assert ended.err.count("raise ValueError") == 1, "one traceback of the job"
    for other in [line for line in ended.errors if line.startswith("worker 0 on host")]:  # torchrun may end it before
        assert f"lost worker 1 on host {host}" in other
        assert other.endswith(f". {line}")


def test_a_script_that_trains_joins_the_others(tmp_path: Path, digest: str) -> None:
    """Each process gets the report, worker 0 the weights. Like Ray Train, the script has made a default group."""
    ended = torchrun(tmp_path, 2, SCRIPT, JOB, tmp_path)
    assert ended.code == 0, ended.err
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told == [{"digest": digest, "workers": 2, "weights": rank == 0, "seen": rank == 0} for rank in range(2)]
