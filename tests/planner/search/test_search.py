"""The search is deterministic, keeps the numbers, and picks the best of what it may choose."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner import made_up
from planner.measured import chains, cluster_of, costs_of
from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster
from samestep.plan.plan import Plan, Stage, equal_shares, slices_text
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.estimate import estimate
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.search.search import TIE, PlanningProblem, SearchSpace, by_speed, search, simplicity

CLUSTERS = st.sampled_from([(1,), (2,), (3,), (1, 1), (2, 1)])


@given(st.data(), CLUSTERS)
def test_the_same_again_is_the_same_plan(data: st.DataObject, hosts: tuple[int, ...]) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    cluster, numerics = cluster_of(*hosts), Numerics(shards=chain.shards)
    freedom = SearchSpace(tuple(range(1, min(chain.shards, cluster.workers) + 1)), may_slice=True)
    found, again = (search(PlanningProblem(chain, costs, cluster, numerics), freedom) for _ in range(2))
    assert [(str(one.plan), one.seconds) for one in found] == [(str(one.plan), one.seconds) for one in again]


@given(st.data(), CLUSTERS, st.booleans())
def test_numbers_are_given_and_so_are_workers(data: st.DataObject, hosts: tuple[int, ...], may_slice: bool) -> None:
    """Only `slices` follows the plan, and only where it may; a number of workers that was asked for is kept."""
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    cluster = cluster_of(*hosts)
    assume(cluster.workers <= chain.shards)
    numerics = Numerics(shards=chain.shards, seed=7, join=0, precision="bfloat16", codec="int8:256@1")
    for one in search(PlanningProblem(chain, costs, cluster, numerics), SearchSpace((cluster.workers,), may_slice)):
        assert one.plan.workers == cluster.workers
        assert replace(one.plan.numerics, slices="none") == numerics
        assert one.plan.numerics.slices == slices_text(one.plan.stages)
        assert may_slice or one.plan.numerics.slices == "none"


@given(st.data(), CLUSTERS)
def test_the_best_comes_first_or_ties_with_it_and_is_simpler(data: st.DataObject, hosts: tuple[int, ...]) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    cluster = cluster_of(*hosts)
    freedom = SearchSpace(tuple(range(1, min(chain.shards, cluster.workers) + 1)), may_slice=True)
    pick, *others = search(PlanningProblem(chain, costs, cluster, Numerics(shards=chain.shards)), freedom)
    least = min(one.seconds for one in (pick, *others))
    assert pick.seconds <= least * (1 + TIE)
    assert [one.seconds for one in others] == sorted(one.seconds for one in others)
    assert all(simplicity(pick) <= simplicity(one) for one in others if one.seconds <= least * (1 + TIE))


@given(st.data(), st.sampled_from([(2,), (1, 1)]))
def test_no_set_of_sliced_layers_is_better_than_the_pick(data: st.DataObject, hosts: tuple[int, ...]) -> None:
    """By brute force over all subsets of up to 4 regions."""
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    cluster = cluster_of(*hosts)
    freedom = SearchSpace((cluster.workers,), may_slice=True, may_cut=False)
    pick = search(PlanningProblem(chain, costs, cluster, Numerics(shards=chain.shards)), freedom)[0]
    assume(len(chain.regions) <= 4)
    assert pick.seconds <= by_hand(chain, costs, cluster) * (1 + TIE)


def by_hand(chain: Chain, costs: MeasuredCosts, cluster: Cluster) -> float:
    ranks, shares = tuple(range(cluster.workers)), equal_shares(chain.shards, cluster.workers)
    found = [estimate(Plan(Numerics(shards=chain.shards), shares), chain, costs, cluster).seconds]
    for count in range(1, len(chain.regions) + 1):
        for some in combinations(chain.regions, count):
            slices = tuple((n, equal_shares(r.slices, cluster.workers)) for r in some for n in r.layers)
            stage = Stage("", ranks, shares, slices)
            plan = Plan.staged(Numerics(shards=chain.shards, slices=slices_text([stage])), [stage])
            found.append(estimate(plan, chain, costs, cluster).seconds)
    return min(found)


@given(st.data())
def test_with_only_one_worker_everything_runs_in_one_process(data: st.DataObject) -> None:
    chain = data.draw(chains())
    costs = data.draw(costs_of(chain))
    found = search(PlanningProblem(chain, costs, cluster_of(1), Numerics(shards=chain.shards)), SearchSpace((1,)))
    assert [one.name for one in found] == ["one process"]


@given(st.data())
def test_a_network_that_cannot_be_cut_is_not(data: st.DataObject) -> None:
    chain = replace(data.draw(chains(least=2)), why_uncut="its forward draws numbers from elsewhere")
    costs = data.draw(costs_of(chain))
    for one in search(PlanningProblem(chain, costs, cluster_of(2), Numerics(shards=chain.shards)), SearchSpace((1, 2))):
        assert not one.plan.stages


@given(st.data())
def test_where_no_plan_is_possible_that_is_said(data: st.DataObject) -> None:
    chain = replace(data.draw(chains(most=1)), regions=())
    costs = data.draw(costs_of(chain))
    workers = chain.shards + 1
    with pytest.raises(PlanRefused, match=rf"no plan for {chain.shards} shards on .*{workers}.*: allow fewer workers"):
        search(
            PlanningProblem(chain, costs, cluster_of(workers), Numerics(shards=chain.shards)), SearchSpace((workers,))
        )


def test_shares_near_those_by_speed_are_tried_since_others_fold_into_fewer_sums() -> None:
    """Of 12 shards 9,3 leave the first host with the sums of 8 and of 1, 8,4 with one sum: half the bytes."""
    on = made_up.cluster(hosts=2, workers=1, bandwidth=125e6)
    on = replace(on, hosts=(on.hosts[0], replace(on.hosts[1], speeds=(0.34,))))
    of = made_up.profile(made_up.chain(shards=12))
    found = made_up.decision(of, on, workers=(2,), may_cut=False)
    assert by_speed(found.problem) == (9, 3)
    assert found.pick.name == "data 8,4"
