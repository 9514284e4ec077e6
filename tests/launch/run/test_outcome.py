"""What became of a run, from its events alone: every strange order without a process."""

import contextlib
import json
import os
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import (
    Disagreement,
    Interrupted,
    JobRefused,
    LossNotFinite,
    PeerLost,
    Refused,
    SamestepError,
    TrainingFailed,
)
from samestep.job.report import WorkerTime
from samestep.launch.failure import LONGEST_TEXT, Event, WorkerError, error_from, failure_event
from samestep.launch.run.outcome import Outcome
from samestep.plan.prediction import PARTS, Prediction
from samestep.schedule.actions import Forward
from samestep.system import wire
from samestep.trace import timesheet
from samestep.trace.worker_trace import WorkerTrace, encoded

PLAN: Event = {
    "event": "plan",
    "workers": 3,
    "assign": [2, 1, 1],
    "shards": 4,
    "numerics": "seed=0 shards=4",
    "plan": "assign = [2, 1, 1]\n",
    "first_step": 0,
    "batch_size": 64,
}
UP: list[Event] = [{"event": "up", "rank": rank, "pid": 100 + rank, "threads": 1} for rank in range(3)]
STEPS: list[Event] = [
    {"event": "steps", "steps": [[0, 2.5, 0.1], [1, 2.0, 0.1]]},
    {"event": "steps", "steps": [[2, 1.5, 0.1]]},
]
TIMES: list[Event] = [
    {
        "event": "worker",
        "rank": rank,
        "compute": 1.0 + rank,
        "communicate": 0.5,
        "wait": 0.25,
        "moved": 7,
        "wired": 0,
        "framed": 0,
    }
    for rank in range(3)
]
FINISHED: Event = {
    "event": "finished",
    "digest": "ab12",
    "metrics": {"accuracy": 0.9},
    "step": 3,
    "stopped": False,
    "checkpoint": False,
    "seconds_per_step": 0.5,
}


def gone(rank: int | None, code: int, step: int = 3) -> Event:
    return {"event": "gone", "rank": rank, "code": code, "step": step}


def failure(error: BaseException, rank: int | None = 1, step: int | None = 3) -> Event:
    return failure_event(error, rank, step)


def outcome(*events: Event, interrupted: bool = False) -> Outcome:
    found = Outcome()
    for event in events:
        found.take(event, [])
    found.interrupted = interrupted
    return found


def cause(*events: Event, interrupted: bool = False) -> SamestepError:
    with pytest.raises(SamestepError) as raised:
        outcome(*events, interrupted=interrupted).conclude()
    return raised.value


def raised(error: BaseException) -> BaseException:
    """An error with a traceback, as a worker catches it."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


def test_a_run_without_trouble_is_a_report() -> None:
    report = outcome(PLAN, *UP, *STEPS, *TIMES[::-1], FINISHED).conclude()
    assert report.losses == [2.5, 2.0, 1.5]
    assert (report.digest, report.workers, report.assign, report.shards) == ("ab12", 3, (2, 1, 1), 4)
    assert (report.steps, report.seconds_per_step, report.rows_per_second) == (3, 0.5, 128.0)
    assert report.times[2] == WorkerTime(3.0, 0.5, 0.25, 7)
    assert report.metrics == {"accuracy": 0.9}


def test_the_planners_prediction_comes_home_with_the_report() -> None:
    prediction = Prediction(0.4, 0.3, 0.5, dict.fromkeys(PARTS, 0.0), [{"Forward": 0.1}])
    plan = json.loads(json.dumps({**PLAN, "prediction": prediction.as_json()}))
    report = outcome(plan, *UP, *STEPS, *TIMES, FINISHED).conclude()
    assert report.prediction == prediction
    assert report.prediction_error == pytest.approx(-0.2)
    assert outcome({**PLAN, "prediction": None}, *TIMES, FINISHED).conclude().prediction is None


def test_traces_come_home_in_the_order_of_ranks_and_their_files_are_closed() -> None:
    told, files = outcome(PLAN, *UP, *STEPS, *TIMES, FINISHED), []
    for rank in (2, 0, 1):
        files.append(os.memfd_create("trace"))
        os.write(files[-1], encoded(WorkerTrace(rank, 0, (timesheet.Event(3, Forward(rank), 1.0, 2.0, 0.5),))))
        told.take({"event": "trace", "rank": rank}, [files[-1]])
    assert [(trace.rank, trace.events[0].action) for trace in told.conclude().traces] == [
        (rank, Forward(rank)) for rank in range(3)
    ]
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


def test_too_few_steps_give_no_speed() -> None:
    report = outcome(PLAN, *UP, *TIMES, {**FINISHED, "seconds_per_step": None}).conclude()
    assert report.seconds_per_step is None
    assert report.rows_per_second is None


@given(st.permutations([*UP, *TIMES, FINISHED]))
def test_the_report_does_not_depend_on_the_order_of_the_races(events: list[Event]) -> None:
    assert outcome(PLAN, *STEPS, *events).conclude().as_json() == (
        outcome(PLAN, *UP, *STEPS, *TIMES, FINISHED).conclude().as_json()
    )


PRIMARY = failure(raised(ValueError("no such row")))
SECONDARY = [failure(PeerLost(0, 1), 0), failure(PeerLost(2, 1), 2)]


@given(st.permutations([PRIMARY, *SECONDARY, *UP, gone(0, 1), gone(1, 1), gone(2, 1)]))
def test_the_first_primary_failure_is_the_cause_in_any_order(events: list[Event]) -> None:
    found = cause(PLAN, *events)
    assert str(found) == "worker 1 failed at step 3: ValueError: no such row"
    assert isinstance(found, WorkerError)
    assert "no such row" in found.traceback
    assert "connection closed" not in found.traceback
    assert found.exit_code == 1


@given(st.lists(st.integers(0, 2), unique=True, min_size=1), st.data())
def test_of_several_primary_failures_the_first_to_arrive_is_told(ranks: list[int], data: st.DataObject) -> None:
    events = [failure(raised(KeyError(f"row {rank}")), rank) for rank in ranks]
    order = data.draw(st.permutations([*events, failure(PeerLost(0, 1), 0)]))
    first = next(event for event in order if not event["secondary"])
    assert f"worker {first['rank']} failed at step 3: KeyError: " in str(cause(PLAN, *order))


@given(st.permutations([gone(2, -9), *SECONDARY[:1], failure(PeerLost(1, 2), 1), gone(0, 1), gone(1, 1)]))
def test_a_killed_worker_is_the_cause_and_those_who_lost_it_are_folded(events: list[Event]) -> None:
    """The others may be seen to end before the one that was killed; they said why, it did not."""
    found = cause(PLAN, *UP, *STEPS, *events)
    assert str(found).startswith("worker 2 was killed by SIGKILL at step 3")
    assert "memory" in str(found)
    assert type(found) is TrainingFailed


@pytest.mark.parametrize(
    ("code", "said"), [(-11, "killed by SIGSEGV"), (-6, "killed by SIGABRT"), (-63, "killed by "), (3, "exit status 3")]
)
def test_every_end_without_a_word_is_named(code: int, said: str) -> None:
    assert said in str(cause(PLAN, *UP, gone(1, code)))


def test_a_worker_that_leaves_with_status_zero_before_its_end_is_named() -> None:
    assert "worker 1 ended with exit status 0" in str(cause(PLAN, *UP, *STEPS, gone(1, 0)))


def test_workers_that_end_after_their_end_are_no_trouble() -> None:
    ends = [gone(rank, 0) for rank in range(3)]
    assert outcome(PLAN, *UP, *STEPS, *TIMES, FINISHED, *ends).conclude().digest == "ab12"


def test_only_secondary_failures_are_still_a_failure() -> None:
    found = cause(PLAN, *UP, *SECONDARY)
    assert "worker 0 lost worker 1" in str(found)


def test_a_leader_that_is_gone_without_a_word() -> None:
    assert "the run's leader is gone at step 3 without a word" in str(cause(PLAN, *UP, *STEPS))
    assert "the run's leader is gone at step 0" in str(cause())


@given(st.permutations([*SECONDARY, gone(0, -9), gone(1, -9), gone(2, -15)]))
def test_an_interrupted_run_is_interrupted_whatever_its_workers_say(events: list[Event]) -> None:
    found = cause(PLAN, *UP, *STEPS, *events, interrupted=True)
    assert type(found) is Interrupted
    assert str(found) == "stopped after step 3"
    assert found.exit_code == 130


def test_a_failure_while_stopping_is_not_hidden() -> None:
    assert "ValueError" in str(cause(PLAN, *UP, PRIMARY, interrupted=True))


def test_a_run_stopped_gently_says_where_it_can_go_on() -> None:
    stopped = {**FINISHED, "stopped": True, "checkpoint": True}
    for interrupted in (True, False):  # the signal may have gone to the workers alone
        found = cause(PLAN, *UP, *STEPS, *TIMES, stopped, interrupted=interrupted)
        assert str(found) == "stopped after step 3; the last checkpoint holds it, --resume goes on"
    without = cause(PLAN, *UP, {**stopped, "checkpoint": False})
    assert "without a checkpoint" in str(without)
    assert "before the first step" in str(cause(PLAN, interrupted=True))


def test_a_refusal_keeps_its_message_and_its_exit_code() -> None:
    found = cause(failure(JobRefused("no trainable parameter"), None, None))
    assert type(found) is Refused
    assert str(found) == "no trainable parameter"
    assert found.exit_code == 2


def test_a_refusal_in_a_worker_is_one_too() -> None:
    assert type(cause(PLAN, *UP, failure(JobRefused("forward changed parameter w"), 1, 0))) is Refused


def test_an_error_before_training_has_no_worker() -> None:
    assert str(cause(failure(raised(ZeroDivisionError()), None, None))) == (
        "the job failed before training: ZeroDivisionError"
    )


@pytest.mark.parametrize("error", [LossNotFinite("the loss of shard 2 is nan"), Disagreement("workers 0 and 1")])
def test_our_own_errors_say_it_all_and_bring_no_traceback(error: TrainingFailed) -> None:
    found = cause(PLAN, *UP, failure(error, 0, 7))
    assert str(found) == f"worker 0 failed at step 7: {type(error).__name__}: {error}"
    assert isinstance(found, WorkerError)
    assert found.traceback == ""


def test_resumed_runs_count_from_where_they_began() -> None:
    assert "at step 41" in str(cause({**PLAN, "first_step": 40}, *UP, gone(1, -9, 41)))
    assert "stopped after step 40" in str(cause({**PLAN, "first_step": 40}, *UP, interrupted=True))


@pytest.mark.parametrize("letter", ["x", "\n", "\0", "é", "∇", "🔥", "\udce9"], ids=ascii)
def test_long_messages_are_cut_so_that_they_travel(letter: str) -> None:
    """Whatever their letters cost on the way, they arrive."""
    event = failure(raised(ValueError(letter * (2 * LONGEST_TEXT) + "end")))
    a, b = wire.pair()
    with a, b:
        wire.send(a, event)
        assert wire.receive(b) == (event, [])
    assert len(event["message"]) <= LONGEST_TEXT
    assert len(event["traceback"]) <= LONGEST_TEXT
    assert event["traceback"].rstrip().endswith("end")


def test_a_loader_workers_error_is_told_by_its_last_line() -> None:
    """torch wraps the traceback of a loader process into the message."""
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "data.py", line 5, in __getitem__\nValueError: no row 3\n'
    )
    assert str(error_from(failure(ValueError(text)))) == "worker 1 failed at step 3: ValueError: no row 3"


def test_an_error_without_a_message_is_its_type() -> None:
    assert str(error_from(failure(raised(AssertionError())))) == "worker 1 failed at step 3: AssertionError"


@given(st.integers(0, 10**6))
def test_events_may_arrive_in_any_order_at_all(seed: int) -> None:
    """Whatever happens, `conclude` gives a report or one of our own errors, never another."""
    kinds: list[Event] = [*UP, *STEPS, *TIMES, FINISHED, PRIMARY, *SECONDARY, gone(0, 0), gone(1, -9), gone(None, 1)]
    events = random.Random(seed).sample(kinds, k=random.Random(seed).randint(0, len(kinds)))
    found: Any = outcome(PLAN, *events)
    with contextlib.suppress(SamestepError):
        assert found.conclude().digest == "ab12"
