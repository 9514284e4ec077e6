"""An estimate replays the executor's own schedules, and its parts add up."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import FAMILIES, PLANS, chains, cluster_of, costs_of, laid, plainly

from samestep.numerics import Numerics
from samestep.planned import checked
from samestep.planner.costs import Costs
from samestep.planner.estimate import estimate
from samestep.planner.search import Freedom, candidates
from samestep.prediction import PARTS


@pytest.mark.parametrize("preset", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_simulated_is_what_is_run(family: str, preset: str) -> None:
    found = laid(family, preset)
    grid, schedules = checked(found.job, found.plan, found.prepared)
    costs = plainly(found.chain)
    if found.job.clip_grad_norm is not None:
        costs = with_clip(costs)
    said = estimate(found.plan, found.chain, costs, cluster_of(4))
    assert said.grid == grid
    assert list(said.schedules) == schedules


def test_a_step_in_lockstep_is_simulated_as_one() -> None:
    found = laid("cnn", "data", workers=2, sync_batchnorm=True)
    grid, schedules = checked(found.job, found.plan, found.prepared)
    said = estimate(found.plan, found.chain, with_clip(plainly(found.chain)), cluster_of(2))
    assert (said.grid, list(said.schedules)) == (grid, schedules)
    assert said.parts["compute"] > 0


@settings(max_examples=40)
@given(st.data())
def test_the_parts_of_every_candidate_add_up(data: st.DataObject) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    hosts = data.draw(st.sampled_from([(2,), (3,), (1, 1), (2, 1)]))
    cluster = cluster_of(*hosts)
    freedom = Freedom(tuple(range(1, cluster.workers + 1)), may_slice=True)
    for plan in candidates(chain, costs, cluster, Numerics(shards=chain.shards), freedom):
        found = estimate(plan, chain, costs, cluster)
        assert set(found.parts) == set(PARTS)
        assert min(found.parts.values()) >= 0
        assert sum(found.parts.values()) == pytest.approx(found.seconds)
        assert math.isfinite(found.seconds)
        assert not found.outcome.waits, "every worker comes to its end"
        busiest = max(sum(own.values()) for own in found.actions)
        assert found.seconds >= busiest * (1 - 1e-9)
        assert found == estimate(plan, chain, costs, cluster), "the same again"


def with_clip(costs: Costs) -> Costs:
    return replace(costs, alone=replace(costs.alone, clip=1e-5), together=replace(costs.together, clip=1e-5))
