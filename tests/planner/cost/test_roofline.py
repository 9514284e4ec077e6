"""Costs from FLOPs and bytes, and what every prediction must hold, on chains and clusters that nobody has."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.drawn import chains, clusters, even_chain, pair_of, uniform
from samestep.errors import ClusterRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster, Link
from samestep.plan.machine import Host
from samestep.plan.plan import Plan, equal_shares
from samestep.plan.prediction import PARTS
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.estimate import Estimate, estimate
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.cost.roofline import is_described, roofline_costs, with_roofline_speeds
from samestep.planner.search.search import PlanningProblem, SearchSpace, candidate_plans

NEVER = 1 + 1e-9  # slower only by rounding


def plans(chain: Chain, cluster: Cluster) -> Iterator[Plan]:
    """Some of every kind, for all workers of the cluster."""
    freedom = SearchSpace((cluster.workers,), may_slice=True)
    numerics = Numerics(shards=chain.shards)
    yield from candidate_plans(PlanningProblem(chain, roofline_costs(chain, cluster), cluster, numerics), freedom)


def seconds(plan: Plan, chain: Chain, cluster: Cluster) -> float:
    return estimate(plan, chain, roofline_costs(chain, cluster), with_roofline_speeds(chain, cluster)).seconds


@given(chains(), clusters())
def test_parts_add_up_and_none_is_below_zero(chain: Chain, cluster: Cluster) -> None:
    for plan in plans(chain, cluster):
        found = estimate(plan, chain, roofline_costs(chain, cluster), cluster)
        assert set(found.parts) == set(PARTS)
        assert sum(found.parts.values()) == pytest.approx(found.seconds)
        assert min(found.parts.values()) >= 0
        assert not found.outcome.waits, "nobody is left waiting"


@given(chains(), clusters(least=2), st.floats(1, 100))
def test_more_bandwidth_is_never_slower(chain: Chain, cluster: Cluster, factor: float) -> None:
    wider = replace(cluster, within=widened(cluster.within, factor), between=widened(cluster.between, factor))
    for plan in plans(chain, cluster):
        assert seconds(plan, chain, wider) <= seconds(plan, chain, cluster) * NEVER, plan


def widened(link: Link | None, factor: float) -> Link:
    assert link is not None
    return Link(link.latency, link.bandwidth * factor)


@given(chains(), clusters(), st.floats(1, 100), st.booleans())
def test_faster_hosts_are_never_slower(chain: Chain, cluster: Cluster, factor: float, cores: bool) -> None:
    name = "flops" if cores else "memory_bandwidth"
    hosts = tuple(replace(host, **{name: getattr(host, name) * factor}) for host in cluster.hosts)
    for plan in plans(chain, cluster):
        faster = seconds(plan, chain, replace(cluster, hosts=hosts))
        # where slices are uneven, an earlier message can take the link before an urgent one (Graham 1969)
        uneven = any(len(set(counts)) > 1 for stage in plan.stages for _, counts in stage.slices)
        assert faster <= seconds(plan, chain, cluster) * (1 + 1e-5 if uneven else NEVER), plan


@given(chains(), clusters())
def test_one_worker_communicates_nothing(chain: Chain, cluster: Cluster) -> None:
    alone = cluster.first(1)
    found = estimate(Plan(Numerics(shards=chain.shards), (chain.shards,)), chain, roofline_costs(chain, alone), alone)
    assert found.parts["communication"] == found.parts["resharding"] == 0
    assert found.parts["bubble"] <= 1e-9 * found.seconds
    assert found.wired == 0


@given(chains(), clusters(least=2), st.integers(0, 4))
def test_curves_are_continuous_in_bytes(chain: Chain, cluster: Cluster, which: int) -> None:
    """A byte more moves a step by no more than a byte takes, wherever it is moved: no jump at the point where
    gradients stop being hidden."""
    at = which % len(chain.units)
    grown = replace(chain.units[at], parameters=chain.units[at].parameters + 1)
    larger = replace(chain, units=(*chain.units[:at], grown, *chain.units[at + 1 :]))
    per_byte = 1e-9 * 50 * chain.shards + 50 * cluster.workers / min(slowest(cluster))
    for plan in plans(chain, cluster):
        before, after = seconds(plan, chain, cluster), seconds(plan, larger, cluster)
        assert before <= after * NEVER
        assert after - before <= per_byte + 1e-9 * before


def slowest(cluster: Cluster) -> Iterator[float]:
    for link in (cluster.within, cluster.between):
        assert link is not None
        yield link.bandwidth
    for host in cluster.hosts:
        assert host.memory_bandwidth is not None
        yield host.memory_bandwidth / cluster.workers


@given(chains(), clusters(least=2))
def test_what_is_simulated_is_in_order(chain: Chain, cluster: Cluster) -> None:
    """A worker does one thing after another, and whatever it waits for has happened."""
    for plan in plans(chain, cluster):
        found = estimate(plan, chain, roofline_costs(chain, cluster), cluster)
        for spans in found.outcome.spans:
            assert all(a.stop <= b.start for a, b in itertools.pairwise(spans))
        sent = times(found, "Send")
        assert all(sent[name] <= begin for name, begin in times(found, "Receive", received=True).items())


def times(found: Estimate, kind: str, *, received: bool = False) -> dict[tuple[int, int], float]:
    """By shard and stage: when it was sent, or its receipt was over."""
    return {
        (action.shard, action.stage): span.stop if received else span.start
        for schedule, spans in zip(found.schedules, found.outcome.spans, strict=True)
        for action, span in zip(schedule, spans, strict=True)
        if type(action).__name__ == kind
    }


def test_backward_takes_twice_the_products_and_the_first_layer_once() -> None:
    chain = even_chain(3, 4)
    cluster = uniform(1, 1, flops=1e6)  # so slow that nothing else counts
    table = roofline_costs(chain, cluster).alone
    for number, found in enumerate(table.units):
        assert found.backward / found.forward == pytest.approx(2.0 if number else 1.0, rel=1e-3)


def test_workers_of_a_host_share_its_memory() -> None:
    chain, cluster = even_chain(3, 8), uniform(8, 8, flops=1e18)  # so fast that memory bounds
    found: MeasuredCosts = roofline_costs(chain, cluster)
    assert found.together.update == pytest.approx(8 * found.alone.update)
    assert found.together.whole.forward > 7 * found.alone.whole.forward


def test_a_host_with_half_the_flops_gets_half_the_speed() -> None:
    chain = even_chain(3, 8)
    hosts = tuple(replace(host, flops=flops) for host, flops in zip(uniform(2, 1).hosts, (1e9, 5e8), strict=True))
    cluster = replace(uniform(2, 1), hosts=hosts)
    assert with_roofline_speeds(chain, cluster).speeds == pytest.approx((1.0, 0.5), rel=0.02)


def test_slices_share_a_region() -> None:
    chain = even_chain(4, 4)
    chain = replace(chain, regions=(pair_of(chain.units, 2),))
    found = roofline_costs(chain, uniform(4, 4))
    assert found.alone.own == (4,)
    assert found.together.own == (1,)
    assert found.together.regions[0].forward < found.alone.regions[0].forward


def test_a_host_that_does_not_say_enough_is_refused() -> None:
    cluster = Cluster((Host("plain", 2, 1, 10**9, flops=1e9),))
    assert not is_described(cluster)
    with pytest.raises(ClusterRefused, match="host plain has no memory_bandwidth"):
        roofline_costs(even_chain(2, 2), cluster)


def test_clipping_is_one_meeting_more() -> None:
    chain, cluster = even_chain(2, 4), uniform(4, 2)
    plan = Plan(Numerics(shards=4), equal_shares(4, 4))
    with_clip = estimate(plan, chain, roofline_costs(chain, cluster, clips=True), cluster)
    assert with_clip.seconds > estimate(plan, chain, roofline_costs(chain, cluster), cluster).seconds
