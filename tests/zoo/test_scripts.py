"""`verify --script` names each bug of these scripts: its class and its place."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from samestep.errors import Refused
from samestep.verification.causes import Cause
from samestep.verification.script.verify_script import verify_script
from warm_runs import WarmRuns

SCRIPTS = Path(__file__).parent / "scripts"

# script, cause, step, kind, name, what the sentence says
ZOO = [
    ("wrapper_bypassed", Cause.MISSING_REDUCTION, 0, "gradient", "fc1.weight", "of its own rows, in 6 of 6"),
    ("hooks_lost", Cause.MISSING_REDUCTION, 0, "gradient", "fc1.weight", "of its own rows, in 6 of 6"),
    ("added_after", Cause.MISSING_REDUCTION, 0, "gradient", "fc1.weight", "differ from one another, in 6 of 6"),
    ("micro_dropped", Cause.MISSING_REDUCTION, 0, "gradient", "fc1.weight", "last of 2 micro-batches"),
    ("mean_of_means", Cause.LOSS_WEIGHTING, 0, "gradient", "fc1.weight", "parts are weighted 0.5, 0.5"),
    ("scaled_twice", Cause.LOSS_WEIGHTING, 0, "gradient", "fc1.weight", "2 times one process's gradient (the number"),
    ("norm_left_out", Cause.MISSING_REDUCTION, 0, "gradient", "norm.weight", "of its own rows, in 2 of 6"),
    ("clipped_alone", Cause.CLIPPING, 0, "gradient", "fc1.weight", "a factor of its own"),
    ("clipped_by_share", Cause.CLIPPING, 0, "clip norm", "norm", "worker 0 clips by norm 0.77"),
    ("tied_twice", Cause.DOUBLE_COUNTING, 0, "gradient", "table.weight", "2 times one process's"),
    ("own_statistics", Cause.BATCHNORM, 0, "buffer", "norm", "its own rows in norm"),
    ("same_shuffle", Cause.DATA_ORDER, 4, "rows", "sampler", "call set_epoch"),
    ("no_sampler", Cause.DATA_ORDER, 0, "rows", "batch", "more than once, the first by workers 0, 1"),
    ("resume_repeats", Cause.DATA_ORDER, 1, "rows", "batch", "were used at step 0 already"),
    ("moments_dropped", Cause.OPTIMIZER_STATE, 1, "optimizer state", "fc1.weight.momentum_buffer", "without the state"),
    ("schedule_lost", Cause.OPTIMIZER_STATE, 2, "setting", "lr of group 0", "begins with 0.1 as at the start"),
    ("optimizer_too_early", Cause.STALE_WEIGHTS, 0, "parameter", "fc1.weight", "that the model has not"),
    ("masters_kept", Cause.STALE_WEIGHTS, 0, "parameter", "fc1.weight", "no parameter of the 6 is changed"),
    ("nan_after_reduction", Cause.NOT_FINITE, 1, "local gradient", "fc1.weight", "a NaN, from a loss of 1.5"),
    ("own_average", Cause.BUFFERS, 0, "buffer", "average", "worker 0's is"),
    ("barrier_on_one", Cause.COLLECTIVE_ORDER, 0, "collective", "barrier", "worker 0 enters barrier"),
    ("swapped", Cause.COLLECTIVE_ORDER, 0, "collective", "gradient of norm.weight", "swapped.py:"),
    ("same_masks", Cause.RANDOM_STREAM, 0, "random stream", "dropout", "one mask"),
    ("late_worker", Cause.HANG, 0, "collective", "", "late_worker.py"),
    ("unseeded", Cause.NOT_DETERMINISTIC, 0, "local gradient", "", "one process differ here already"),
]


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmRuns]:
    process = WarmRuns()
    yield process
    process.close()


@pytest.mark.parametrize(("script", "cause", "step", "kind", "name", "says"), ZOO, ids=[row[0] for row in ZOO])
def test_a_bug_is_named(script: str, cause: Cause, step: int, kind: str, name: str, says: str, warm: WarmRuns) -> None:
    verdict = verify_script(
        SCRIPTS / f"{script}.py", timeout=12 if script in ("late_worker", "barrier_on_one") else 60, start=warm.start
    )
    (found,) = verdict.findings
    assert (found.cause, found.step) == (cause, step), str(found)
    assert says in found.why, str(found)
    if cause is not Cause.NOT_DETERMINISTIC:
        assert (found.kind, found.name) == (kind, name), str(found)


def test_the_worker_whose_row_made_a_nan_is_named(warm: WarmRuns) -> None:
    """After the reduction all workers have it, and one process has it as well."""
    (found,) = verify_script(SCRIPTS / "nan_after_reduction.py", start=warm.start).findings
    assert (found.worker, found.shard) == (1, 0)
    assert "one process has one too" in found.why


def test_a_script_that_never_trains_is_refused(warm: WarmRuns) -> None:
    with pytest.raises(Refused, match="trains nothing"):
        verify_script(SCRIPTS / "never_trains.py", start=warm.start)


def test_a_script_that_fails_is_refused_with_its_last_lines(warm: WarmRuns) -> None:
    with pytest.raises(Refused, match="no data at /nowhere"):
        verify_script(SCRIPTS / "fails.py", start=warm.start)


def test_what_no_script_can_be_held_against_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no script"):
        verify_script(tmp_path / "missing.py")
    with pytest.raises(Refused, match="at least 2"):
        verify_script(SCRIPTS / "fails.py", workers=1)
    with pytest.raises(Refused, match="at least 1"):
        verify_script(SCRIPTS / "fails.py", steps=0)


def test_the_command_prints_the_finding_and_ends_with_1() -> None:
    script = SCRIPTS / "scaled_twice.py"
    done = subprocess.run(
        [sys.executable, "-m", "samestep", "verify", "--script", str(script)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1, done.stderr
    assert "loss weighting: step 0, gradient fc1.weight" in done.stdout
