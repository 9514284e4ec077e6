"""Whose shards bring a parameter's gradient: every unit once, whatever its number in a step."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.numerics.numerics import Numerics
from samestep.numerics.reduction_tree import Node, fold_plan, local_plan
from samestep.parallel.gradients.ownership import Ownership, num_published, slice_ownership, stage_ownership
from samestep.plan.plan import Plan, Stage


@st.composite
def homes(draw: st.DrawFn) -> Ownership:
    """A group of workers out of seven, in any order, some without a share."""
    workers = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5, unique=True))
    shares = st.lists(st.integers(0, 6), min_size=len(workers), max_size=len(workers)).filter(any)
    return Ownership(tuple(workers), tuple(draw(shares)))


@given(home=homes(), data=st.data())
def test_every_unit_has_one_worker_in_any_step(home: Ownership, data: st.DataObject) -> None:
    num_units = data.draw(st.integers(1, sum(home.assign)))
    assert list(chain(*(home.units_of(rank, num_units) for rank in home.workers))) == list(range(num_units))
    assert not any(home.units_of(rank, num_units) for rank in set(range(7)) - set(home.workers))


@given(home=homes(), data=st.data())
def test_what_is_published_folds_to_the_root_and_has_a_slot_of_its_own(home: Ownership, data: st.DataObject) -> None:
    num_units = data.draw(st.integers(1, sum(home.assign)))
    nodes, holders = home.published(num_units)
    assert len(fold_plan(nodes, num_units).left) == 1
    assert len(set(holders)) == len(holders) == len(nodes)
    assert all(slot < home.slots_of(rank) for rank, slot in holders)


@given(home=homes())
def test_slots_are_as_many_as_some_step_needs(home: Ownership) -> None:
    steps = range(1, sum(home.assign) + 1)
    for rank in home.workers:
        plans = [local_plan(home.units_of(rank, num_units), num_units) for num_units in steps]
        assert home.slots_of(rank) == max(1, *(len(plan.left) for plan in plans))
        filled = [len({fold.slot for fold in plan.folds if not fold.into}) for plan in plans]
        assert home.kept_slots(rank) == max(1, *filled)
        assert home.slots_of(rank) <= home.kept_slots(rank)


def plan(*stages: Stage, join: int = 0, shards: int = 8) -> Plan:
    return Plan.staged(Numerics(shards=shards, join=join), stages)


def test_a_whole_layer_is_at_home_in_its_stage() -> None:
    staged = plan(Stage("", (0, 2), (5, 3)), Stage("head", (1,), (8,)))
    assert stage_ownership(staged, 0) == Ownership((0, 2), (5, 3))
    assert stage_ownership(staged, 1) == Ownership((1,), (8,))
    assert stage_ownership(staged, 0).published(8) == (
        (Node(2, 0), Node(0, 4), Node(0, 5), Node(1, 3)),
        ((0, 0), (0, 1), (2, 0), (2, 1)),
    )
    assert stage_ownership(Plan(Numerics(shards=8), (6, 2)), 0) == Ownership((0, 1), (6, 2))


@pytest.mark.parametrize(("join", "sets"), [(0, 1), (2, 4), (3, 3), (8, 1), (20, 1)])
def test_a_slice_has_one_owner_who_sees_every_join_set(join: int, sets: int) -> None:
    sliced = plan(Stage("", (0, 1), (5, 3), (("head", (1, 3)),)), join=join)
    home = slice_ownership(sliced, 1)
    assert home == Ownership((1,), (sets,), is_slice=True)
    assert home.units_of(1, sets) == range(sets)
    assert home.units_of(0, sets) == range(0)
    assert home.published(sets)[1] == ((1, 0),), "one sum, which is the root"


def test_fabric_memory_has_the_slots_of_the_neediest_home() -> None:
    staged = plan(Stage("", (0, 1), (5, 3)), Stage("head", (1, 0), (4, 4)))
    found = {stage_ownership(staged, 0), stage_ownership(staged, 1)}
    assert [num_published(staged, found, rank) for rank in (0, 1)] == [2, 2]
    assert [num_published(staged, {stage_ownership(staged, 1)}, rank) for rank in (0, 1)] == [1, 1]
    assert num_published(plan(Stage("", (0,), (8,))), found, 0) == 0, "alone, nobody reads them"
