"""Forwards of every kind that a record has to see through, cut into stages: the digest is that of the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import samestep
from jobs import cut_kinds
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher

JOB = Path(__file__).parents[1] / "jobs" / "cut_kinds.py"
CASES = [*cut_kinds.BATCHES, *cut_kinds.MODELS]


@pytest.fixture(scope="module")
def train(launcher: Launcher) -> Callable[..., Report]:
    def run(case: str, **options: Any) -> Report:
        return samestep.train(f"{JOB}:job", launcher=launcher, settings={"case": case}, **options)

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_cut_keeps_the_digest(case: str, train: Callable[..., Report]) -> None:
    whole, cut = train(case, plan="data", workers=1), train(case, plan="pipeline", workers=2)
    assert cut.losses == whole.losses
    assert cut.digest == whole.digest


@pytest.mark.parametrize(
    "case",
    ["plain object", "kept on layers", "the batch in place", "a mask", "a cache", "two inputs", "spare parameters"],
)
def test_slices_differ_by_rounding_only(case: str, train: Callable[..., Report]) -> None:
    whole, sliced = train(case, plan="data", workers=1), train(case, plan="slices", workers=2)
    assert sliced.losses == pytest.approx(whole.losses, rel=1e-5)
