"""Right scripts, by wrapper, by FSDP2 and by hand: no finding."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from samestep.verification.causes import Cause
from samestep.verification.script.verify_script import verify_script
from warm_runs import WarmRuns

RIGHT = Path(__file__).parent / "right" / "train.py"
OWN_DIVISION = Path(__file__).parent / "right" / "own_division.py"

# workers, arguments
CONFIGURATIONS = [
    (2, ""),
    (2, "--optimizer Adam"),
    (2, "--optimizer AdamW --clip 0.1"),
    (2, "--micro 2"),
    (2, "--micro 3 --clip 0.5"),
    (2, "--model Convolutions"),
    (2, "--model Convolutions --optimizer Adam --micro 2"),
    (2, "--model Bag"),
    (2, "--model Bag --optimizer Adam --clip 1.0"),
    (2, "--how hand"),
    (2, "--how hand --model Bag --optimizer AdamW"),
    (2, "--how hand --micro 2 --clip 0.1"),
    (2, "--how fsdp"),
    (2, "--how fsdp --clip 0.1"),
    (2, "--how fsdp --model Convolutions --optimizer AdamW"),
    (2, "--schedule"),
    (2, "--dropout"),
    (2, "--rows 70"),
    (2, "--check --micro 2"),
    (2, "--scale 1e36 --clip 0.1"),
    (3, ""),
    (3, "--model Convolutions --optimizer Adam"),
    (3, "--how hand --rows 100"),
    (3, "--how fsdp --model Bag"),
    (4, "--clip 0.1"),
]

FOR_TEST_ALL = {  # combinations of what others show one by one
    (2, "--optimizer Adam"),
    (2, "--micro 2"),
    (2, "--model Convolutions"),
    (2, "--model Bag"),
    (2, "--how hand"),
    (2, "--how fsdp"),
    (2, "--how fsdp --model Convolutions --optimizer AdamW"),
    (2, "--model Convolutions --optimizer Adam --micro 2"),
    (2, "--scale 1e36 --clip 0.1"),
    (3, "--how hand --rows 100"),
    (3, "--how fsdp --model Bag"),
    (3, ""),
}


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmRuns]:
    process = WarmRuns()
    yield process
    process.close()


@pytest.mark.parametrize(
    ("workers", "arguments"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case in FOR_TEST_ALL else []) for case in CONFIGURATIONS],
    ids=[f"{w} {a}" for w, a in CONFIGURATIONS],
)
def test_no_alarm(workers: int, arguments: str, warm: WarmRuns) -> None:
    verdict = verify_script(RIGHT, arguments.split(), workers, start=warm.start)
    assert not verdict.findings, str(verdict)
    assert verdict.steps == 3
    assert verdict.compared > 50


def test_a_script_that_divides_its_rows_itself_needs_another_batch_size_on_one_process(warm: WarmRuns) -> None:
    right = verify_script(OWN_DIVISION, reference_arguments=["--batch-size", "16"], start=warm.start)
    assert not right.findings, str(right)
    assert (right.steps, right.compared > 50) == (3, True)
    (found,) = verify_script(OWN_DIVISION, start=warm.start).findings
    assert found.cause is Cause.DATA_ORDER
    assert "--reference-arguments" in found.why


def test_steps_that_a_scaler_leaves_out_are_counted_and_not_compared(warm: WarmRuns) -> None:
    verdict = verify_script(RIGHT, ["--scale", "1e36", "--clip", "0.1"], start=warm.start)
    assert not verdict.findings, str(verdict)
    assert any("GradScaler left out" in note for note in verdict.notes), str(verdict)
