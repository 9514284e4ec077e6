"""A plan is laid over a chain as the executor cuts the network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.measured import FAMILIES, PLANS, chains, cluster_of, costs_of, laid
from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan, Stage
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.plan_segments import segment_plan
from samestep.planner.search.search import PlanningProblem, SearchSpace, candidate_plans


@pytest.mark.parametrize("preset", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_are_those_of_the_executor(family: str, preset: str) -> None:
    found = laid(family, preset)
    structure = found.prepared.structure
    wanted = [(False,)] if structure is None else structure.sliced
    assert segment_plan(found.plan, found.chain).sliced == [tuple(kinds) for kinds in wanted]


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, Chain]:
    chain = draw(chains())
    costs = draw(costs_of(chain))
    every = list(
        candidate_plans(
            PlanningProblem(chain, costs, cluster_of(2), Numerics(shards=chain.shards)),
            SearchSpace((1, 2), may_slice=True),
        )
    )
    return draw(st.sampled_from(every)), chain


@given(plans())
def test_every_unit_is_in_one_segment_whole_or_sliced(given_plan: tuple[Plan, Chain]) -> None:
    plan, chain = given_plan
    placed = segment_plan(plan, chain)
    whole = [unit for part in placed.parts for unit in part.units]
    sliced = [unit for part in placed.parts if part.region is not None for unit in chain.regions[part.region].units]
    assert sorted([*whole, *sliced]) == list(range(len(chain.units)))
    assert sorted(r for part in placed.parts for r in part.rests) == sorted(
        part.region for part in placed.parts if part.region is not None
    )


@given(plans())
def test_dense_segments_are_at_both_ends_of_a_stage_and_between_sliced_ones(given_plan: tuple[Plan, Chain]) -> None:
    for kinds in segment_plan(*given_plan).sliced:
        assert list(kinds) == [number % 2 == 1 for number in range(len(kinds))]
        assert len(kinds) % 2 == 1


def test_a_stage_that_begins_nowhere_is_refused_with_where_it_could() -> None:
    chain = laid("mlp", "data").chain
    numerics = Numerics(shards=8)
    with pytest.raises(PlanRefused, match=r"begins at body\.3.* before body\.2, body\.5, head"):
        segment_plan(Plan.staged(numerics, [Stage("", (0,), (8,)), Stage("body.3", (1,), (8,))]), chain)


def test_half_of_two_layers_that_are_sliced_together_is_refused() -> None:
    chain = laid("mlp", "data").chain
    stage = Stage("", (0, 1), (4, 4), (("body.0", (2, 2)),))
    with pytest.raises(PlanRefused, match=r"slices body\.0, and that was not measured by itself"):
        segment_plan(Plan.staged(Numerics(shards=8, slices="body.0:4"), [stage]), chain)
