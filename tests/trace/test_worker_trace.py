"""A worker's last steps travel unchanged."""

from dataclasses import fields
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.schedule.actions import Action, Forward, Lockstep, SliceForward, class_name
from samestep.trace.timesheet import Event, Ring
from samestep.trace.worker_trace import WorkerTrace, action_of, decoded, encoded, fields_of, last_steps

small = st.integers(0, 9)


def actions() -> st.SearchStrategy[Action]:
    """Every kind that there is."""
    sets = st.builds(range, small, st.integers(10, 19))
    values = {
        int: small,
        range: sets,
        tuple[int, ...]: st.lists(small, min_size=1, unique=True).map(lambda shards: tuple(sorted(shards))),
    }
    kinds = get_args(Action)
    assert {field.type for kind in kinds for field in fields(kind)} <= set(values)
    return st.one_of(*(st.builds(kind, **{field.name: values[field.type] for field in fields(kind)}) for kind in kinds))


times = st.floats(0, 1e6)
events = st.lists(st.builds(Event, small, actions(), times, times, times), max_size=20)


@given(st.builds(WorkerTrace, small, small, events.map(tuple), times))
def test_what_travels_is_what_was_sent(trace: WorkerTrace) -> None:
    assert decoded(encoded(trace)) == trace


@given(actions())
def test_an_action_is_its_class_and_fields(action: Action) -> None:
    assert action_of(class_name(type(action)), fields_of(action)) == action


def test_sets_of_shards_keep_their_kind() -> None:
    assert action_of("SliceForward", {"shards": [2, 3], "segment": 1}) == SliceForward(range(2, 4), 1)
    assert action_of("Lockstep", {"shards": [2, 3]}) == Lockstep((2, 3))


def test_times_are_put_on_another_clock() -> None:
    trace = WorkerTrace(1, 1, (Event(0, Forward(0), 10.0, 12.0, 0.5),))
    assert decoded(encoded(trace, shift=-4.0)).events == (Event(0, Forward(0), 6.0, 8.0, 0.5),)


@pytest.mark.parametrize(
    ("capacity", "count", "steps"), [(100, 2, [3, 4]), (100, 9, [0, 1, 2, 3, 4]), (7, 9, [2, 3, 4])]
)
def test_the_last_steps_are_whole(capacity: int, count: int, steps: list[int]) -> None:
    """A ring of 7 events has forgotten half of step 1."""
    ring = Ring(capacity)
    for step in range(5):
        ring.add(step, Forward(0), 2.0 * step, 2.0 * step + 1, 0.0)
        ring.add(step, Forward(1), 2.0 * step + 1, 2.0 * step + 2, 0.0)
    kept = last_steps(ring, count)
    assert [event.step for event in kept] == [step for step in steps for _ in range(2)]
