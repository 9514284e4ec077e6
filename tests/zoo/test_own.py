"""The bug zoo, jobs of samestep: each bug is made on purpose, and `verify` must name its class and its place."""

from pathlib import Path

import pytest

import samestep
from samestep.launch.run.launcher import Launcher
from samestep.verification.causes import Cause

JOBS = Path(__file__).parent / "own_jobs.py"

BUGS = [
    # function, settings, class, kind and name of the first difference, step, part of the reason
    ("without_gradients_of_a_worker", {}, Cause.MISSING_REDUCTION, "gradient first.weight", 0, "shards [2, 3]"),
    ("without_gradients_of_a_worker", {"name": "norm"}, Cause.MISSING_REDUCTION, "gradient norm.weight", 0, "[2, 3]"),
    ("last_shard_dropped", {}, Cause.MISSING_REDUCTION, "gradient first.weight", 0, "shards [3]"),
    ("added_twice", {}, Cause.DOUBLE_COUNTING, "gradient first.weight", 0, "1, 1, 2, 2"),
    ("off_by_the_number_of_workers", {}, Cause.LOSS_WEIGHTING, "gradient first.weight", 0, "2 times"),
    ("tied", {}, Cause.MISSING_REDUCTION, "gradient words.weight", 0, "3 as head.weight]"),
    ("norm_of_own_pieces", {}, Cause.CLIPPING, "clip norm ", 0, "instead of"),
    ("buffers_of_own_shards", {}, Cause.BATCHNORM, "buffer 1.running_mean", 0, ""),
    ("other_rows", {}, Cause.DATA_ORDER, "rows [0]", 0, ""),
    ("stream_of_the_worker", {}, Cause.RANDOM_STREAM, "random stream after forward", 0, ""),
    ("update_without_effect", {}, Cause.STALE_WEIGHTS, "parameter first.weight", 0, ""),
    ("state_lost", {}, Cause.OPTIMIZER_STATE, "optimizer state momentum_buffer of", 1, ""),
    ("other_rate", {}, Cause.OPTIMIZER_STATE, "setting lr of group 0", 0, ""),
    ("old_weights", {}, Cause.STALE_WEIGHTS, "weights left.weight in forward", 1, ""),
    ("swapped", {}, Cause.COLLECTIVE_ORDER, "gradient left.weight", 0, "it has those of right.weight"),
    ("validation_divided", {}, Cause.LOSS_WEIGHTING, "evaluation loss", 3, "of the same held-out rows"),
    ("validation_divided", {"everywhere": "true"}, Cause.LOSS_WEIGHTING, "evaluation loss", 3, "whole batch's"),
    ("nan_of_a_row", {}, Cause.NOT_FINITE, "local gradient first.weight", 0, ""),
    ("counts_calls", {}, Cause.HIDDEN_STATE, "loss", 0, ""),
    ("mean_of_means", {}, Cause.LOSS_WEIGHTING, "loss of the batch", 0, ""),
    ("negatives_in_the_batch", {}, Cause.COUPLED_ROWS, "loss of the batch", 0, "together"),
]


@pytest.mark.parametrize(
    ("function", "settings", "cause", "place", "step", "reason"), BUGS, ids=[f"{b[0]} {b[3]}" for b in BUGS]
)
def test_a_bug_is_named(
    function: str, settings: dict[str, str], cause: Cause, place: str, step: int, reason: str, launcher: Launcher
) -> None:
    verdict = samestep.verify(f"{JOBS}:{function}", settings=settings, plan="data", workers=2, launcher=launcher)
    assert not verdict.is_same
    finding = verdict.findings[0]
    assert finding.cause == cause, finding
    assert f"{finding.kind} {finding.name}".startswith(place), finding
    assert finding.step == step, finding
    assert reason in finding.why, finding


def test_a_job_that_does_not_repeat_is_told_so_first(launcher: Launcher) -> None:
    verdict = samestep.verify(f"{JOBS}:of_the_process", plan="data", workers=2, launcher=launcher)
    assert verdict.repeats is not None
    assert verdict.repeats.cause == Cause.NOT_DETERMINISTIC
    assert verdict.same_bits is None
    assert "NOT DETERMINISTIC" in verdict.text()


@pytest.mark.parametrize("function", ["right"])
def test_the_same_job_without_a_bug_raises_no_alarm(function: str, launcher: Launcher) -> None:
    """Guards the table above: it is the bug that is found, not the job."""
    verdict = samestep.verify(f"{JOBS}:{function}", plan="data", workers=2, launcher=launcher)
    assert verdict.is_same, verdict.text()
    assert not verdict.warnings
