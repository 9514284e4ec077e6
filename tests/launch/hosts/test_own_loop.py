"""A loop of the user's own is the same training, alone and as several workers."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import samestep
from commands import free_port, start_script
from samestep.errors import JobRefused, Refused
from samestep.launch.run.launcher import Launcher

TESTS = Path(__file__).resolve().parents[2]
SCRIPT = TESTS / "scripts" / "own_loop.py"
GRIDS = TESTS / "jobs" / "grids.py"


def loop(what: str, folder: Path, workers: int = 0) -> list[subprocess.CompletedProcess[str]]:
    """The script, started by hand (0 workers), or by something that sets torch's variables."""
    world = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        start_script(
            SCRIPT, what, str(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(world | {"RANK": str(rank)} if workers else {})},
            cold=what == "trains",
        )
        for rank in range(max(1, workers))
    ]  # fmt: skip
    ended = [(process, *process.communicate(timeout=240)) for process in started]
    return [subprocess.CompletedProcess([], process.returncode, out, err) for process, out, err in ended]


def told(what: str, folder: Path, workers: int = 0) -> dict[str, Any]:
    ended = loop(what, folder, workers)
    assert [end.returncode for end in ended] == [0] * len(ended), ended[0].stderr
    assert [end.stdout for end in ended[1:]] == [""] * (len(ended) - 1)
    return dict(json.loads(ended[0].stdout))


@pytest.fixture(scope="module")
def trained(launcher: Launcher) -> Callable[[str], samestep.Report]:
    return lambda plan: samestep.train(f"{GRIDS}:cnn", workers=1, plan=plan, launcher=launcher)


def test_alone_it_is_the_training_of_the_command(tmp_path: Path, trained: Callable[[str], samestep.Report]) -> None:
    found, report = told("trains", tmp_path), trained("data")
    assert (found["digest"], found["losses"]) == (report.digest, report.losses)
    assert found["metrics"] == report.metrics


@pytest.mark.parametrize("what", ["trains", "hybrid"])
def test_several_processes_of_it_are_one_training(
    what: str, tmp_path: Path, trained: Callable[[str], samestep.Report]
) -> None:
    found = told(what, tmp_path, workers=3)
    assert found["size"] == 3
    assert found["digest"] == trained("hybrid" if what == "hybrid" else "data").digest


def test_batches_of_ones_own_give_one_digest_and_a_plain_loops_weights(tmp_path: Path) -> None:
    alone, three = told("own batches", tmp_path), told("own batches", tmp_path, workers=3)
    assert alone == three
    assert len(alone["losses"]) == 3


def test_it_stops_and_goes_on_with_another_number_of_workers(
    tmp_path: Path, trained: Callable[[str], samestep.Report]
) -> None:
    assert told("stops", tmp_path, workers=2)["steps"] == 2
    assert told("resumed", tmp_path)["digest"] == trained("data").digest


def test_it_saves_the_weights_of_the_command(tmp_path: Path, trained: Callable[[str], samestep.Report]) -> None:
    from safetensors.torch import load_file

    told("saves", tmp_path, workers=2)
    found, expected = load_file(tmp_path / "weights.safetensors"), trained("data").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_one_worker_raises_ends_the_others_with_its_reason(tmp_path: Path) -> None:
    first, last = loop("raises", tmp_path, workers=2)
    assert "ValueError: the disk is full" in last.stderr
    assert first.returncode == 1
    assert "lost worker 1 on host" in first.stderr
    assert "failed: ValueError: the disk is full" in first.stderr


JOB = samestep.Job(
    model=lambda: nn.Linear(3, 2), loss=nn.CrossEntropyLoss(), batch_size=4, shards=2,
    optimizer=lambda params: torch.optim.SGD(params, 0.1),
)  # fmt: skip


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(JobRefused, match=r"no option speed: it takes plan, shards"):
        samestep.Trainer(JOB, speed=3)
    with pytest.raises(JobRefused, match=r"given a str: give a samestep\.Job"):
        samestep.Trainer("job")  # type: ignore[arg-type]
    with pytest.raises(JobRefused, match=r"returned a str, not a samestep\.Job"):
        samestep.Trainer(lambda: "job")  # type: ignore[arg-type, return-value]
    with pytest.raises(Refused, match="plan with stages or slices looks at a batch"):
        samestep.Trainer(JOB, plan="slices")


def test_batches_that_cannot_be_cut_are_refused() -> None:
    with samestep.Trainer(JOB) as trainer, pytest.raises(JobRefused, match="no data to take steps over"):
        next(trainer.steps())
    with samestep.Trainer(JOB) as trainer, pytest.raises(JobRefused, match="no data to take steps over"):
        trainer.step()
    with samestep.Trainer(JOB) as trainer, pytest.raises(Refused, match="has no tensor with rows"):
        trainer.step("rows")
    with samestep.Trainer(JOB) as trainer, pytest.raises(Refused, match="of 4 and of 3 rows"):
        trainer.step((torch.zeros(4, 3), torch.zeros(3, dtype=torch.long)))
