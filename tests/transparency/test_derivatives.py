"""Derivatives that forward takes of its own model are the same on any number of workers, and torch's."""

from pathlib import Path

import pytest

import samestep
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).resolve().parents[1] / "jobs" / "derivatives.py"


@pytest.mark.parametrize("case", ["hessian", "per_sample", "jvp", "dual", "force"])
def test_one_digest_on_one_and_two_workers(case: str, launcher: Launcher) -> None:
    one, two = (
        samestep.train(f"{JOBS}:job", settings={"case": case}, workers=workers, plan="data", launcher=launcher)
        for workers in (1, 2)
    )
    assert one.digest == two.digest
