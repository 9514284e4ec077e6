"""The bytes between hosts are those that the executor's own count says, and what they cost is never negative."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.measured import FAMILIES, PLANS, chains, cluster_of, costs_of, laid, plainly
from samestep.numerics.numerics import Numerics, shard_rows
from samestep.parallel.demand.traffic import traffic
from samestep.planner.cost.estimate import estimate
from samestep.planner.search.search import PlanningProblem, SearchSpace, candidate_plans
from samestep.setup.laid_out_model import ownership_of, pieces_of

KNOWN = {
    ("gpt", "pipeline"): 0.09,  # a weight that stages on two hosts share: its gradient and its values are not counted
    ("encoder", "pipeline"): 0.03,  # a mask of 144 bytes crosses where the survey cuts inside of a layer
}


@pytest.mark.parametrize("hosts", [(0, 0, 1, 1), (0, 1, 1, 1)])
@pytest.mark.parametrize("preset", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_between_two_hosts_are_those_of_the_executor(
    family: str, preset: str, hosts: tuple[int, ...]
) -> None:
    found = laid(family, preset)
    homes = ownership_of(found.prepared, found.plan)
    pieces = pieces_of(found.prepared, found.plan, homes, hosts)
    rows = [len(part) for part in shard_rows(found.job.batch_size, found.plan.numerics.shards)]
    _, wired = traffic(found.plan, found.prepared.structure, found.prepared.layout, homes, pieces, rows, hosts)
    cluster = cluster_of(*(hosts.count(host) for host in sorted(set(hosts))))
    said = estimate(found.plan, found.chain, plainly(found.chain), cluster).wired
    assert said == pytest.approx(wired.total, rel=KNOWN.get((family, preset), 0.02))


@given(st.data())
def test_nothing_is_between_hosts_when_there_is_one(data: st.DataObject) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    freedom = SearchSpace((1, 2), may_slice=True)
    for plan in candidate_plans(PlanningProblem(chain, costs, cluster_of(2), Numerics(shards=chain.shards)), freedom):
        found = estimate(plan, chain, costs, cluster_of(2))
        assert found.wired == 0
        assert found.parts["resharding"] == 0


@given(st.data())
def test_a_faster_link_makes_no_plan_slower(data: st.DataObject) -> None:
    """Of orders that are fixed; the estimate of a step never falls short of what its links move."""
    chain = data.draw(chains(least=2))
    costs = data.draw(costs_of(chain))
    slow, fast = cluster_of(1, 1, bandwidth=1e3, latency=1e-3), cluster_of(1, 1, bandwidth=1e9, latency=1e-5)
    for plan in candidate_plans(
        PlanningProblem(chain, costs, slow, Numerics(shards=chain.shards)), SearchSpace((2,), may_slice=True)
    ):
        found = estimate(plan, chain, costs, slow)
        assert found.seconds >= estimate(plan, chain, costs, fast).seconds - 1e-12
        assert found.wired > 0
        assert found.seconds >= found.wired / 2 / 1e3 * (1 - 1e-9), "one of the two directions moves half of it"
