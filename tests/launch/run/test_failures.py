"""What fails while training: one line first that names worker, step and cause, then one traceback, exit code 1."""

import math
import re
from pathlib import Path

import pytest

import samestep
from commands import Command
from jobs_bad.failing import STEP
from samestep.errors import TrainingFailed
from samestep.launch.failure import Event, WorkerError
from samestep.launch.run.launcher import Launcher
from samestep.launch.run.outcome import Outcome

FAILING = Path(__file__).parents[2] / "jobs_bad" / "failing.py"
TRANSPORTS = ["processes", "threads"]

# The line that each fault of jobs_bad/failing.py is told by.
FAULTS = {
    "nan": r"LossNotFinite: the loss of shard 2 is nan: .*--allow-nan goes on",
    "infinite": r"LossNotFinite: the loss of shard 2 is (nan|inf): .*--allow-nan goes on",
    "raises": r"ValueError: row 89 is torn",
    "raises without words": r"KeyError",
    "shape": r"ValueError: samples have different shapes, \[\(5,\), \(\)\] and \[\(6,\), \(\)\]: .*Job.collate_fn",
    "forward": r"RuntimeError: no such thing",
}


def failure(launcher: Launcher, fault: str, **options: object) -> TrainingFailed:
    settings = {"fault": fault, "loaders": options.pop("loaders", 0)}
    with pytest.raises(TrainingFailed) as caught:
        samestep.train(f"{FAILING}:job", settings=settings, launcher=launcher, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 1
    return caught.value


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_names_worker_step_and_cause_on_every_transport(
    launcher: Launcher, fault: str, transport: str
) -> None:
    error = failure(launcher, fault, workers=2, transport=transport)
    assert re.fullmatch(f"worker 1 failed at step {STEP}: {FAULTS[fault]}", str(error))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loss_that_an_earlier_gradient_spoilt_is_not_laid_to_its_rows(launcher: Launcher, workers: int) -> None:
    """A NaN in a gradient is in all parameters after the update, and in the next loss of every shard."""
    text = str(failure(launcher, "gradient", workers=workers))
    assert f"at step {STEP + 1}: LossNotFinite: the loss of shard " in text
    assert "is nan: its rows are not the cause, used.weight is not finite since an earlier step's update" in text
    verdict = samestep.verify(
        f"{FAILING}:job", settings={"fault": "gradient"}, workers=workers, steps=STEP + 2, launcher=launcher
    )
    assert verdict.not_finite is not None
    assert (verdict.not_finite.step, verdict.not_finite.shard) == (STEP, 2)
    assert verdict.not_finite.worker == (1 if workers == 2 else 0)
    assert "NOT FINITE\n  not finite: step 5, local gradient used." in verdict.text()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_failure_is_that_of_the_worker_that_holds_the_shard(launcher: Launcher, workers: int) -> None:
    error = failure(launcher, "raises", workers=workers)
    assert str(error) == f"worker {2 * workers // 4} failed at step {STEP}: ValueError: row 89 is torn"


@pytest.mark.parametrize(("fault", "cause"), [("raises", "ValueError: row 89 is torn"), ("shape", FAULTS["shape"])])
def test_a_failure_in_a_loader_worker_reads_as_one_in_the_worker(launcher: Launcher, fault: str, cause: str) -> None:
    error = failure(launcher, fault, workers=2, loaders=1)
    assert re.fullmatch(f"worker 1 failed at step {STEP}: {cause}", str(error))
    assert isinstance(error, WorkerError)
    assert "Original Traceback" in error.traceback


def test_a_failure_brings_the_traceback_of_that_worker_only(launcher: Launcher) -> None:
    error = failure(launcher, "raises", workers=4)
    assert isinstance(error, WorkerError)
    assert error.traceback.count("Traceback (most recent call last)") == 1
    assert error.traceback.endswith("ValueError: row 89 is torn\n")
    assert "PeerLost" not in error.traceback


def test_a_long_message_in_another_script_arrives(launcher: Launcher) -> None:
    error = failure(launcher, "raises in many lines", workers=2)
    assert str(error).splitlines()[0] == f"worker 1 failed at step {STEP}: ValueError: first line"
    assert "日本語" in str(error)


@pytest.mark.parametrize("fault", ["nan", "infinite"])
def test_a_loss_that_is_not_finite_is_allowed_when_asked_for(launcher: Launcher, fault: str) -> None:
    settings = {"fault": fault}
    one, two = (
        samestep.train(
            f"{FAILING}:job", settings=settings, workers=workers, steps=STEP + 2, allow_nan=True, launcher=launcher
        )
        for workers in (1, 2)
    )
    assert [math.isfinite(loss) for loss in two.losses] == [True] * STEP + [False] * 2
    assert two.digest == one.digest
    assert two.as_json()["losses"][STEP:] == [None, None]


DEATHS = {
    "is killed": "was killed by SIGKILL",
    "exits": "ended with exit status 7",
    "exits with 0": "ended with exit status 0",
}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("fault", DEATHS)
def test_a_worker_that_dies_is_named_with_its_end_and_step(launcher: Launcher, fault: str, workers: int) -> None:
    error = failure(launcher, fault, workers=workers)
    holder = {1: 0, 2: 1, 3: 1}[workers]
    assert str(error).startswith(f"worker {holder} {DEATHS[fault]} at step {STEP}: look for ")


@pytest.mark.parametrize("fault", DEATHS)
def test_a_process_of_threads_that_dies_is_named_with_its_end(launcher: Launcher, fault: str) -> None:
    error = failure(launcher, fault, workers=2, transport="threads")
    assert str(error).startswith(f"the process of all workers {DEATHS[fault]} at step {STEP}: ")


def test_a_job_function_that_raises_fails_before_training_with_its_traceback(launcher: Launcher) -> None:
    with pytest.raises(WorkerError) as caught:
        samestep.train(f"{FAILING}:fails_early", launcher=launcher)
    assert str(caught.value) == "the job failed before training: FileNotFoundError: digits.csv is not here"
    assert "failing.py" in caught.value.traceback


class Warnings:
    """A watcher that keeps the warnings."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def see(self, event: Event, outcome: Outcome) -> None:
        if event["event"] == "warning":
            self.texts.append(event["text"])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("steps", [3, 10, 12])
def test_a_parameter_without_gradient_trains_on_with_one_warning_that_names_it(
    launcher: Launcher, steps: int, transport: str
) -> None:
    seen = Warnings()
    report = samestep.train(
        f"{FAILING}:job",
        settings={"fault": "forgotten"},
        workers=2,
        steps=steps,
        transport=transport,
        launcher=launcher,
        watcher=seen,
    )
    assert report.steps == steps
    assert len(seen.texts) == 1
    assert "no gradient so far for forgotten.weight, forgotten.bias" in seen.texts[0]


def test_a_warning_about_many_parameters_names_the_first_and_counts_the_rest(launcher: Launcher) -> None:
    seen = Warnings()
    samestep.train(f"{FAILING}:many_unused", workers=2, launcher=launcher, watcher=seen)
    assert len(seen.texts) == 1
    assert "more.2.weight and 3 more" in seen.texts[0]


# Through the real command.


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_command_prints_the_line_first_then_one_traceback(tmp_path: Path, transport: str) -> None:
    command = Command(tmp_path)
    ended = command.run(
        "train", FAILING, "--workers", 2, "--transport", transport, "--set", "fault=raises", "--quiet", "--json"
    )
    assert (ended.code, ended.out) == (1, "")
    assert ended.errors[0] == f"worker 1 failed at step {STEP}: ValueError: row 89 is torn"
    assert ended.errors[1:3] == ["", "Traceback (most recent call last):"]
    assert ended.err.count("Traceback") == 1
    assert ended.errors[-1] == "ValueError: row 89 is torn"


def test_the_command_says_a_lost_worker_in_one_line(tmp_path: Path) -> None:
    ended = Command(tmp_path).run("train", FAILING, "--workers", 2, "--set", "fault=is killed", "--quiet")
    assert (ended.code, ended.out, len(ended.errors)) == (1, "", 1)
    assert ended.err.startswith(f"worker 1 was killed by SIGKILL at step {STEP}: ")


def test_the_command_warns_once_between_its_progress(tmp_path: Path) -> None:
    ended = Command(tmp_path).run("train", FAILING, "--workers", 2, "--set", "fault=forgotten", "--steps", 12)
    assert ended.code == 0
    assert [line for line in ended.errors if "warning" in line] == [
        "warning: no gradient so far for forgotten.weight, forgotten.bias: forward does not use it, "
        "so the optimizer skips it"
    ]
