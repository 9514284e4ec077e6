"""Commands whose launcher is known by its variables alone: pods of Kubernetes, a job of SLURM without srun."""

import json
import os
from pathlib import Path

import pytest

import samestep
from commands import Command, free_port
from samestep.launch.run.launcher import Launcher

JOB = f"{Path(__file__).parents[2] / 'jobs' / 'grids.py'}:mlp"


def test_two_pods_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: Launcher) -> None:
    pod = {"NNODES": 2, "NPROC_PER_NODE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in pod.items():
        monkeypatch.setenv(f"PET_{name}", str(value))
    command, pods = Command(tmp_path), []
    for rank in (1, 0):
        monkeypatch.setenv("PET_NODE_RANK", str(rank))
        pods.append(command.start("train", JOB, "--json", "--quiet", cold=True))
    second, first = [command.end(pod) for pod in pods]
    assert (first.code, second.code, second.out) == (0, 0, ""), first.err + second.err
    assert json.loads(first.out)["digest"] == samestep.train(JOB, workers=1, launcher=launcher).digest


def test_a_job_of_slurm_that_srun_did_not_start_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    ended = Command(tmp_path).run("train", JOB, "--workers", 1, "--steps", 1, "--quiet")
    assert ended.code == 0
    assert ended.errors == [
        "warning: this job of SLURM has 4 tasks, and this command is none of them: it uses this host only. "
        "Start it with srun to use them all"
    ]


def test_variables_that_say_too_little_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = Command(tmp_path).run("train", JOB)
    assert ended.code == 2
    assert ended.errors == [
        "samestep: the environment has set RANK, WORLD_SIZE and not MASTER_ADDR, MASTER_PORT: set them too, or start "
        "the workers with torchrun"
    ]
