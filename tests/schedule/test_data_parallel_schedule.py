"""A schedule is a value: the data-parallel step, as lists."""

import inspect
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.parallel.execution.cut_executor import CutExecutor
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.local_executor import LocalExecutor
from samestep.parallel.execution.stale_executor import StaleExecutor
from samestep.parallel.execution.step import METHODS
from samestep.schedule import actions
from samestep.schedule.actions import (
    COMMUNICATION,
    Action,
    Agree,
    Backward,
    Clip,
    Forward,
    Load,
    Lockstep,
    MergeBuffers,
    Publish,
    Reduce,
    Schedule,
    Update,
)
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.passes import schedule_of

MEETINGS = (Agree, Reduce, MergeBuffers, Clip, Update, Publish)


def order(shards: range, *, lockstep: bool = False, clip: bool = False) -> Schedule:
    """Worker 1 of three; worker 0 has the shards before its own, worker 2 one more."""
    stage = StageGrid((0, 1, 2), (shards.start, len(shards), 1), (False,))
    return schedule_of(Grid(shards.stop + 1, 1, (stage,)), "1f1b", 1, clip=clip, lockstep=lockstep)


def test_four_shards_on_two_workers_as_drawn() -> None:
    end = (Agree(), Reduce(), MergeBuffers(), Update(), Publish())
    assert order(range(2)) == (Load(), Forward(0), Backward(0), Forward(1), Backward(1), *end)
    assert order(range(2, 4)) == (Load(), Forward(2), Backward(2), Forward(3), Backward(3), *end)


def test_a_worker_without_shards_still_does_its_part() -> None:
    assert order(range(3, 3)) == (Load(), Agree(), Reduce(), MergeBuffers(), Update(), Publish())
    assert order(range(3, 3), lockstep=True) == order(range(3, 3))


def test_shards_in_lockstep_are_one_action() -> None:
    assert order(range(1, 4), lockstep=True)[1:3] == (Lockstep((1, 2, 3)), Agree())


@given(first=st.integers(0, 20), count=st.integers(0, 20), lockstep=st.booleans(), clip=st.booleans())
def test_all_workers_meet_in_the_same_order(first: int, count: int, lockstep: bool, clip: bool) -> None:
    """Whoever has which shards: else the exchanges would not fit one another."""
    schedule = order(range(first, first + count), lockstep=lockstep, clip=clip)
    meetings = [action for action in schedule if isinstance(action, MEETINGS)]
    assert meetings == [a for a in order(range(1), lockstep=lockstep, clip=clip) if isinstance(a, MEETINGS)]
    assert (Clip() in schedule) == clip


@given(first=st.integers(0, 20), count=st.integers(0, 20))
def test_every_shard_goes_forward_and_then_backward_once(first: int, count: int) -> None:
    schedule = order(range(first, first + count))
    forwards = [action.shard for action in schedule if isinstance(action, Forward)]
    assert forwards == [action.shard for action in schedule if isinstance(action, Backward)]
    assert forwards == list(range(first, first + count))
    for shard in forwards:
        assert schedule.index(Backward(shard)) == schedule.index(Forward(shard)) + 1


def test_every_action_has_one_method_of_the_executor() -> None:
    assert set(METHODS) == set(get_args(Action))
    assert len(set(METHODS.values())) == len(METHODS)
    for name in METHODS.values():
        owner = next(kind for kind in (Executor, CutExecutor, StaleExecutor, LocalExecutor) if hasattr(kind, name))
        parameters = list(inspect.signature(getattr(owner, name)).parameters)
        assert parameters == ["self", "action", "state"], name
    assert set(COMMUNICATION) <= set(METHODS)


@pytest.mark.parametrize("kind", get_args(Action))
def test_actions_are_frozen_values(kind: type) -> None:
    fields = {"shard": 1, "shards": range(1, 3), "segment": 4, "stage": 2, "peer": 3, "age": 5, "worker": 6}
    chosen = {name: fields[name] for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    assert kind(**chosen) == kind(**chosen)
    assert hash(kind(**chosen)) == hash(kind(**chosen))
    assert kind.__module__ == actions.__name__
    assert kind.__doc__
