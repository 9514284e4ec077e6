"""An estimate replays the executor's own schedules, and its parts add up."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.measured import FAMILIES, PLANS, chains, cluster_of, costs_of, laid, plainly
from samestep.numerics.numerics import Numerics
from samestep.plan.prediction import PARTS
from samestep.planner.cost.action_costs import ActionCosts
from samestep.planner.cost.estimate import estimate
from samestep.planner.cost.host_traffic import HostTraffic
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.cost.plan_segments import segment_plan
from samestep.planner.search.search import PlanningProblem, SearchSpace, candidate_plans
from samestep.setup.plan_check import checked


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


@pytest.mark.parametrize("hosts", [(1, 1), (2, 1), (1, 1, 1)])
def test_stale_gradients_hide_what_computing_is_long_enough_for(hosts: tuple[int, ...]) -> None:
    """A stale step takes the longer of computing and the wire; an exact one the sum, but for what backward hides."""
    exact, stale, older = (laid("mlp", "data", workers=sum(hosts), sync=s) for s in ("exact", "stale(1)", "stale(2)"))
    costs = plainly(exact.chain)
    grid, schedules = checked(stale.job, stale.plan, stale.prepared)
    computing = estimate(stale.plan, stale.chain, costs, cluster_of(*hosts, bandwidth=1e12, latency=0.0)).seconds
    for bandwidth in (1e5, 1e6, 3e6, 1e8):
        cluster = cluster_of(*hosts, bandwidth=bandwidth, latency=0.0)
        found = estimate(stale.plan, stale.chain, costs, cluster)
        assert (found.grid, list(found.schedules)) == (grid, schedules)
        busy = ActionCosts(segment_plan(stale.plan, stale.chain), costs, cluster, stale.plan.numerics.shards)
        on_wire, _ = HostTraffic(busy.segments, cluster, stale.plan.numerics.shards, busy).posted
        assert found.seconds == pytest.approx(max(computing, on_wire), rel=0.05), bandwidth
        assert sum(found.parts.values()) == pytest.approx(found.seconds)
        assert min(found.parts.values()) >= 0
        assert estimate(older.plan, older.chain, costs, cluster).seconds == pytest.approx(found.seconds)
        plain = estimate(exact.plan, exact.chain, costs, cluster)
        assert (found.wired == plain.wired) == (len(hosts) == 2)
        if computing / 2 < on_wire < 2 * computing:
            assert found.seconds < plain.seconds


def test_a_step_in_lockstep_is_simulated_as_one() -> None:
    found = laid("cnn", "data", workers=2, sync_batchnorm=True)
    grid, schedules = checked(found.job, found.plan, found.prepared)
    said = estimate(found.plan, found.chain, with_clip(plainly(found.chain)), cluster_of(2))
    assert (said.grid, list(said.schedules)) == (grid, schedules)
    assert said.parts["compute"] > 0


@given(st.data())
def test_the_parts_of_every_candidate_add_up(data: st.DataObject) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    hosts = data.draw(st.sampled_from([(2,), (3,), (1, 1), (2, 1)]))
    cluster = cluster_of(*hosts)
    freedom = SearchSpace(tuple(range(1, cluster.workers + 1)), may_slice=True)
    for plan in candidate_plans(PlanningProblem(chain, costs, cluster, Numerics(shards=chain.shards)), freedom):
        found = estimate(plan, chain, costs, cluster)
        assert set(found.parts) == set(PARTS)
        assert min(found.parts.values()) >= 0
        assert sum(found.parts.values()) == pytest.approx(found.seconds)
        assert math.isfinite(found.seconds)
        assert not found.outcome.waits, "every worker comes to its end"
        busiest = max(sum(own.values()) for own in found.actions)
        assert found.seconds >= busiest * (1 - 1e-9)
        assert found == estimate(plan, chain, costs, cluster), "the same again"


def with_clip(costs: MeasuredCosts) -> MeasuredCosts:
    return replace(costs, alone=replace(costs.alone, clip=1e-5), together=replace(costs.together, clip=1e-5))
