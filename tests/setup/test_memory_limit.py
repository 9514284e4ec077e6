"""A model that no worker can hold trains on several, under a limit that the kernel enforces."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import samestep
from samestep.errors import Refused, TrainingFailed
from samestep.launch.run.launcher import Launcher

JOB = str(Path(__file__).parents[1] / "jobs" / "large.py")
CONTROLLER = Path("/sys/fs/cgroup/memory")
MB = 10**6
LIMIT = 380 * MB  # the model's parameters are 201 MB, with gradients and momentum 604 MB
SLACK = 60 * MB  # Python's own


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group under which workers make theirs."""
    path = CONTROLLER / f"samestep-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control groups to write to: {error}")
    if not (path / "memory.limit_in_bytes").exists():
        path.rmdir()
        pytest.skip("the memory controller is not mounted")
    yield path
    deadline = time.monotonic() + 60
    for own in [*path.glob("worker-*"), path]:
        while own.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # busy until its last process is gone
                own.rmdir()
                break
            os.sched_yield()


@pytest.fixture(scope="module")
def reference(launcher: Launcher) -> samestep.Report:
    return samestep.train(JOB, launcher=launcher, workers=1)


def test_data_parallelism_is_refused_with_the_numbers_side_by_side(launcher: Launcher) -> None:
    expected = (
        r"worker 0 needs 52\d\.\d MB \(parameters 201\.4 MB, gradients 201\.4 MB, optimizer 100\.\d MB, "
        r"activations \d\.\d MB, workspace 24\.\d MB\), --memory-limit allows 380\.0 MB: "
        r"use more workers with --plan pipeline"
    )
    with pytest.raises(Refused, match=expected):
        samestep.train(JOB, launcher=launcher, workers=2, memory_limit=LIMIT)


def test_stages_train_within_the_limit_with_the_same_bits(
    group: Path, launcher: Launcher, reference: samestep.Report
) -> None:
    settings = {"group": str(group), "limit": LIMIT + SLACK}
    report = samestep.train(JOB, launcher=launcher, plan="pipeline", workers=2, memory_limit=LIMIT, settings=settings)
    assert len(list(group.glob("worker-*"))) == 2
    assert (report.digest, report.losses) == (reference.digest, reference.losses)


def test_slices_train_within_the_limit(group: Path, launcher: Launcher) -> None:
    alone = samestep.train(JOB, launcher=launcher, plan="slices", workers=1)
    settings = {"group": str(group), "limit": LIMIT + SLACK}
    report = samestep.train(JOB, launcher=launcher, plan="slices", workers=2, memory_limit=LIMIT, settings=settings)
    assert len(list(group.glob("worker-*"))) == 2
    assert report.digest == alone.digest


def test_the_kernel_means_it(group: Path, launcher: Launcher) -> None:
    """With room for a worker's parameters and gradients only, the same run is killed."""
    settings = {"group": str(group), "limit": 250 * MB}
    with pytest.raises(TrainingFailed, match=r"worker \d was killed by SIGKILL at step 0"):
        samestep.train(JOB, launcher=launcher, plan="pipeline", workers=2, memory_limit=LIMIT, settings=settings)


def test_what_needs_the_whole_model_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--save needs the whole model in one worker"):
        samestep.train(JOB, launcher=launcher, workers=2, memory_limit=LIMIT, save=tmp_path / "weights.safetensors")
