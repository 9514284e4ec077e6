"""Busy times are the measured ones, put together; owned bytes are those that the executor deals out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.measured import FAMILIES, PLANS, chains, cluster_of, costs_of, laid, plainly
from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster
from samestep.plan.plan import Plan, Stage, equal_shares
from samestep.planner.cost.action_costs import ActionCosts
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.estimate import estimate
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.cost.plan_segments import segment_plan
from samestep.schedule import actions
from samestep.setup.laid_out_model import ownership_of, pieces_of


def busy(plan: Plan, chain: Chain, costs: MeasuredCosts, cluster: Cluster) -> ActionCosts:
    return ActionCosts(segment_plan(plan, chain), costs, cluster, chain.shards)


@given(st.data())
def test_a_shard_through_the_uncut_network_takes_what_was_measured(data: st.DataObject) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    plan = Plan(Numerics(shards=chain.shards), equal_shares(chain.shards, 2))
    found = busy(plan, chain, costs, cluster_of(2))
    assert found.seconds(0, actions.Forward(0)) == pytest.approx(costs.together.whole.forward)
    adds = found.seconds(0, actions.Backward(0)) - costs.together.whole.backward
    assert adds == pytest.approx(0, abs=1e-12), "the first shard's gradient is added to nothing"


@given(st.data())
def test_a_worker_of_twice_the_speed_takes_half_the_time(data: st.DataObject) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    plan = Plan(Numerics(shards=chain.shards), equal_shares(chain.shards, 2))
    cluster = cluster_of(2)
    fast = replace(cluster, hosts=(replace(cluster.hosts[0], speeds=(1.0, 2.0)),))
    slow, quick = busy(plan, chain, costs, cluster), busy(plan, chain, costs, fast)
    for action in estimate(plan, chain, costs, cluster).schedules[1]:
        assert quick.seconds(1, action) == pytest.approx(slow.seconds(1, action) / 2)


@given(st.data())
def test_one_host_updates_every_parameter_once(data: st.DataObject) -> None:
    chain = data.draw(chains())
    plan = Plan(Numerics(shards=chain.shards), equal_shares(chain.shards, 2))
    owned = busy(plan, chain, plainly(chain), cluster_of(2)).owned
    assert sum(nbytes for own in owned for nbytes, _ in own) == pytest.approx(chain.parameters)


@pytest.mark.parametrize("hosts", [(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 1, 2)])
@pytest.mark.parametrize("preset", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_that_are_updated_are_those_of_the_executors_pieces(
    family: str, preset: str, hosts: tuple[int, ...]
) -> None:
    """In sum: pieces are whole parameters of the optimizer where they can be, and the planner deals out evenly."""
    if (family, preset) == ("gpt", "pipeline"):
        pytest.skip("a weight that two stages share belongs to the first of them; the planner counts it in both")
    found = laid(family, preset)
    pieces = pieces_of(found.prepared, found.plan, ownership_of(found.prepared, found.plan), hosts)
    entries = found.prepared.layout.entries
    real = sum((p.stop - p.start) * entries[p.entry].param.element_size() for owned in pieces for p in owned)
    tied = sum(e.nbytes for e in entries if e.tied_to is not None) * (2 if len(set(hosts)) == 2 else 1)
    cluster = cluster_of(*(hosts.count(host) for host in sorted(set(hosts))))
    owned = busy(found.plan, found.chain, plainly(found.chain), cluster).owned
    said = sum(nbytes for own in owned for nbytes, _ in own)
    # Where two hosts make every update, what is sliced is made once: its slice lives on one worker.
    assert said == pytest.approx(real + tied, rel=0.02)


def test_a_backward_in_two_parts_takes_as_long_as_in_one() -> None:
    chain = laid("mlp", "data").chain
    stages = [Stage("", (0,), (8,)), Stage("body.5", (1,), (8,))]
    one, two = (
        busy(Plan.staged(Numerics(shards=8), stages, order=order), chain, plainly(chain), cluster_of(2))
        for order in ("1f1b", "zero-bubble")
    )
    for segment in (0, 1):
        first, later = actions.Backward(3, segment), actions.BackwardWeight(3, segment)
        apart = two.seconds(segment, first) + two.seconds(segment, later)
        assert apart == pytest.approx(one.seconds(segment, first))


def test_shards_in_lockstep_take_what_was_measured_for_each() -> None:
    chain = laid("cnn", "data").chain
    plan = Plan(Numerics(shards=8, sync_batchnorm=True), (5, 3))
    costs = plainly(chain)
    found = busy(plan, chain, costs, cluster_of(2))
    each = costs.together.whole.forward + costs.together.whole.backward
    assert found.seconds(0, actions.Lockstep(tuple(range(5)))) == pytest.approx(5 * each)
    assert estimate(plan, chain, costs, cluster_of(2)).parts["compute"] == pytest.approx(5 * each)
