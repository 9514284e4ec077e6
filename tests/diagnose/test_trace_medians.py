"""Medians over the steps that all workers know."""

import pytest

from samestep.diagnose.trace_medians import trace_medians
from samestep.schedule.actions import Agree, Backward, Forward, Lockstep, Reduce, Send
from samestep.trace.timesheet import Event
from samestep.trace.worker_trace import WorkerTrace
from traces import trace


def test_busy_seconds_are_summed_in_a_step_and_the_median_taken_over_steps() -> None:
    events = []
    for step, length in enumerate([50.0, 1.0, 2.0]):  # the first one is slow, as first steps are
        begin = 100.0 * step
        events += [
            Event(step, Forward(shard), begin + shard * length, begin + (shard + 1) * length, 0.0) for shard in range(2)
        ]
    found = trace_medians([WorkerTrace(0, 0, tuple(events))])
    assert found.steps == 3
    assert found.busy == ({"Forward": 4.0},)
    assert found.seconds == 4.0
    assert (found.shards, found.compute, found.slowest) == ((2,), (4.0,), 0)


def test_only_steps_that_all_workers_know_count() -> None:
    long, short = trace(0, [(Forward(0), 1.0, 0.0)], steps=5), trace(1, [(Forward(1), 2.0, 0.0)], steps=3)
    assert trace_medians([long, short]).steps == 3


def test_what_the_plan_was_is_seen_from_the_actions() -> None:
    found = trace_medians([trace(0, [(Lockstep((0, 1, 2)), 3.0, 0.0)]), trace(1, [(Lockstep((3,)), 3.0, 0.0)], host=1)])
    assert (found.shards, found.hosts, found.is_staged, found.is_sliced) == ((3, 1), (0, 1), False, False)
    assert trace_medians([trace(0, [(Send(0, 0, 1), 1.0, 0.0)])]).is_staged


def test_waits_and_bytes_under_way_are_apart() -> None:
    workers = [
        trace(0, [(Forward(0), 1.0, 0.0), (Agree(), 3.0, 3.0), (Reduce(), 2.0, 1.5)], steps=3),
        trace(1, [(Backward(1), 3.0, 0.0), (Agree(), 1.0, 1.0), (Reduce(), 2.0, 0.5)], steps=3),
    ]
    found = trace_medians(workers)
    assert found.waits == {(0, 1): pytest.approx(2.0)}
    assert found.under_way == (
        {"Agree": pytest.approx(1.0), "Reduce": 1.5},
        {"Agree": pytest.approx(1.0), "Reduce": 0.5},
    )
    assert found.busy[0]["Reduce"] == 0.5
    assert found.slowest == 1
