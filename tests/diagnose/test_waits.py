"""Every second of waiting has one cause, and it is the right one in cases that can be done by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.diagnose.waits import waits_of
from samestep.schedule.actions import Agree, Forward, Lockstep, Receive, Reduce, Send, SliceForward
from samestep.trace.timesheet import Event
from samestep.trace.worker_trace import WorkerTrace
from traces import trace


def found(*traces: WorkerTrace) -> dict[tuple[int, int | None], float]:
    sums: dict[tuple[int, int | None], float] = {}
    for wait in waits_of(traces):
        sums[wait.rank, wait.cause] = sums.get((wait.rank, wait.cause), 0.0) + wait.seconds
    return {pair: pytest.approx(seconds) for pair, seconds in sums.items()}


def test_at_a_meeting_all_wait_for_the_last_to_come() -> None:
    """Worker 2 comes after 5 s; then all wait 1 s for one another's records."""
    workers = [
        trace(0, [(Forward(0), 2.0, 0.0), (Agree(), 4.0, 4.0)]),
        trace(1, [(Forward(1), 3.0, 0.0), (Agree(), 3.0, 3.0)]),
        trace(2, [(Forward(2), 5.0, 0.0), (Agree(), 1.0, 1.0)]),
    ]
    assert found(*workers) == {(0, 2): 3.0, (1, 2): 2.0, (0, None): 1.0, (1, None): 1.0, (2, None): 1.0}


def test_inside_a_meeting_who_waits_least_keeps_the_others() -> None:
    """Both come at once, and worker 1 has more slices to compute."""
    meet = SliceForward(range(2), 1)
    assert found(trace(0, [(meet, 6.0, 4.0)]), trace(1, [(meet, 6.0, 0.0)])) == {(0, 1): 4.0}


def test_in_lockstep_each_has_shards_of_its_own() -> None:
    assert found(trace(0, [(Lockstep((0, 1)), 5.0, 2.0)]), trace(1, [(Lockstep((2, 3)), 5.0, 0.5)])) == {
        (0, 1): 1.5,
        (0, None): 0.5,
        (1, None): 0.5,
    }


def test_a_message_that_is_not_yet_sent_is_its_senders() -> None:
    """Sent from 3 s on, taken at 4.5 s."""
    sender = trace(0, [(Forward(0), 3.0, 0.0), (Send(0, 0, 1), 1.0, 0.0)])
    assert found(sender, trace(1, [(Receive(0, 0, 0), 5.0, 4.5)])) == {(1, 0): 3.0, (1, None): 1.5}


def test_a_message_whose_send_is_unknown_is_its_senders() -> None:
    assert found(trace(0, []), trace(1, [(Receive(0, 0, 0), 5.0, 4.5)])) == {(1, 0): 4.5}


def test_a_full_mailbox_is_its_receivers() -> None:
    assert found(trace(0, [(Send(0, 0, 1), 5.0, 2.0)])) == {(0, 1): 2.0}


def test_sums_from_other_hosts_are_under_way() -> None:
    assert found(trace(0, [(Reduce(), 5.0, 2.0)]), trace(1, [(Reduce(), 5.0, 3.0)])) == {(0, None): 2.0, (1, None): 3.0}


def test_meetings_of_different_steps_are_apart() -> None:
    """Each is late once: worker 1 by 2 s, then worker 0 by 1 s."""
    early = trace(0, [(Agree(), 3.0, 2.0), (Forward(0), 1.0, 0.0), (Agree(), 1.0, 0.0)])
    late = trace(1, [(Agree(), 1.0, 0.0), (Agree(), 2.0, 1.0)], begin=2.0)
    assert found(in_steps(early, [0, 1, 1]), in_steps(late, [0, 1])) == {(0, 1): 2.0, (1, 0): 1.0}


def in_steps(one: WorkerTrace, steps: list[int]) -> WorkerTrace:
    return replace(one, events=tuple(replace(e, step=step) for e, step in zip(one.events, steps, strict=True)))


ACTIONS = [Agree(), SliceForward(range(2), 0), Lockstep((0,)), Receive(0, 0, 1), Send(0, 0, 1), Reduce(), Forward(0)]
seconds = st.floats(0, 10)
did = st.tuples(st.sampled_from(ACTIONS), seconds, seconds, st.floats(0, 1))


@given(st.lists(st.lists(did, max_size=7, unique_by=lambda one: one[0]), min_size=1, max_size=4))
def test_each_second_is_told_once(workers: list[list[tuple[object, float, float, float]]]) -> None:
    traces = [
        WorkerTrace(
            rank, 0, tuple(Event(0, action, at, at + length, part * length) for action, at, length, part in own)
        )
        for rank, own in enumerate(workers)
    ]
    waits = waits_of(traces)
    assert all(wait.seconds > 0 and wait.cause != wait.rank for wait in waits if wait.kind not in ("Send", "Receive"))
    for trace_ in traces:
        total = sum(event.waited for event in trace_.events)
        assert sum(wait.seconds for wait in waits if wait.rank == trace_.rank) == pytest.approx(total)
