"""A flip holds where it says: another plan wins beyond it, and the pick before it."""

import math
from dataclasses import replace

import pytest

from planner.made_up import any_decision, chain, cluster, decision, profile
from samestep.planner.cost.estimate import estimate
from samestep.planner.explain.flips import (
    LARGE,
    Flip,
    batch_flips,
    bits,
    duel,
    first_flip,
    flips,
    link_flips,
    with_bandwidth,
    with_rows,
    worker_flips,
)
from samestep.planner.explain.plan_comparison import shape
from samestep.planner.search.decision import Decision
from samestep.planner.search.search import TIE


def seconds_of_the_pick(of: Decision) -> float:
    return estimate(of.pick.plan, of.profile.chain, of.profile.costs, of.cluster).seconds


def with_link(of: Decision, bandwidth: float) -> Decision:
    slowest = of.cluster.slowest_between_hosts(range(of.cluster.workers))
    assert slowest is not None
    return replace(of, cluster=with_bandwidth(of.cluster, bandwidth / slowest.bandwidth))


SEEDS = (1, 4, 5, 7, 8, 10)


@pytest.mark.parametrize("seed", SEEDS)
def test_beyond_a_links_flip_the_pick_loses(seed: int) -> None:
    of = any_decision(seed)
    for flip in link_flips(of):
        beyond = with_link(of, flip.value)
        assert seconds_of_the_pick(beyond) == pytest.approx(flip.pick)
        assert flip.seconds < flip.pick * (1 - TIE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("base", [0.25, 4.0])
def test_a_flip_is_where_the_other_plan_begins_to_win(seed: int, base: float) -> None:
    of = any_decision(seed)

    def changed(factor: float) -> Decision:
        return replace(of, cluster=with_bandwidth(of.cluster, factor))

    found = first_flip(changed, [base, base**2], 6)
    if found is not None:
        factor, (best, _) = found
        nearer = factor * base ** (-1 / 64)  # the last step of the bisection
        assert duel(changed(factor), best.plan) is not None
        assert duel(changed(nearer), best.plan) is None


def test_some_of_these_have_a_flip() -> None:
    assert sum(bool(list(link_flips(any_decision(seed)))) for seed in SEEDS) >= 3


def test_a_links_flip_is_a_sentence_with_the_speed_and_the_winner() -> None:
    of = decision(on=cluster(hosts=2, workers=1))
    (flip,) = link_flips(of)
    assert of.pick.kind == "pipeline"
    assert flip.plan != of.pick.name
    assert flip.text.startswith(f"below {bits(flip.value)} between hosts, {flip.plan} wins: ")
    assert [bits(125e6), bits(3.1e9 / 8), bits(1e6)] == ["1 Gbit/s", "3.1 Gbit/s", "8 Mbit/s"]


def test_on_one_host_no_link_flips_anything() -> None:
    assert cluster().slowest_between_hosts(range(cluster().workers)) is None
    assert list(link_flips(decision())) == []


def test_only_links_between_hosts_change_their_speed() -> None:
    before = cluster(hosts=2, workers=2)
    named = replace(before, links=(("host0", "host1", before.link(0, 2)), ("host0", "host0", before.link(0, 1))))
    after = with_bandwidth(named, 0.5)
    assert after.within == before.within
    assert [link.bandwidth for _, _, link in after.links] == [62.5e6, 2e9]
    assert after.between is not None
    assert after.between.bandwidth == 62.5e6


@pytest.mark.parametrize("seed", range(6))
def test_at_a_batchs_flip_which_is_a_power_of_two_the_pick_loses(seed: int) -> None:
    of = any_decision(seed)
    for flip in batch_flips(of):
        factor = flip.value / of.profile.chain.batch_size
        assert math.log2(factor) == pytest.approx(round(math.log2(factor)))
        there = with_rows(of, factor)
        assert seconds_of_the_pick(there) == pytest.approx(flip.pick)
        assert flip.seconds < flip.pick * (1 - TIE)
        assert f"with {flip.value} rows in a batch, {flip.plan} wins" in flip.text


def test_a_batch_with_more_rows_takes_longer_in_proportion_and_its_weights_stay() -> None:
    of = decision()
    more = with_rows(of, 4.0)
    assert more.profile.chain.batch_size == 256
    assert more.profile.chain.parameters == of.profile.chain.parameters
    assert [unit.makes for unit in more.profile.chain.units] == [4 * unit.makes for unit in of.profile.chain.units]
    before, after = of.profile.costs.together, more.profile.costs.together
    assert after.whole.forward == pytest.approx(4 * before.whole.forward)
    assert (after.update, after.add, after.gap) == (before.update, before.add, before.gap)


def test_a_batch_is_not_made_so_small_that_it_has_fewer_shards() -> None:
    of = decision(profile(chain(batch_size=12)))
    assert all(flip.value >= 8 for flip in batch_flips(of))


def test_every_other_number_of_workers_has_its_best_plan() -> None:
    of = decision(on=cluster(hosts=2, workers=2), workers=(4,))
    found = {flip.value: flip for flip in worker_flips(of)}
    assert sorted(found) == [1, 2, 3]
    assert found[1].text == f"on 1 worker the best is one process: {found[1].seconds * 1e3:.0f} ms, the pick " + (
        f"{of.pick.seconds * 1e3:.3g} ms"
    )
    for workers, flip in found.items():
        alone = decision(of.profile, of.cluster, workers=(workers,))
        assert (flip.plan, flip.seconds) == (alone.pick.name, alone.pick.seconds)


def test_all_flips_differ_from_the_pick() -> None:
    of = decision(on=cluster(hosts=2, workers=2), may_slice=True)
    found: list[Flip] = flips(of)
    assert {flip.what for flip in found} == {"link", "batch", "workers"}
    assert of.pick.name not in [flip.plan for flip in found]
    shapes = {one.name: shape(one.plan) for one in of.ranking}
    assert all(shapes[flip.plan] != shape(of.pick.plan) for flip in found if flip.plan in shapes)


def test_what_is_too_large_is_not_searched_many_times() -> None:
    of = decision()
    assert flips(of)
    workers = LARGE // len(of.profile.chain.units) + 1
    assert flips(replace(of, cluster=cluster(workers=workers))) == []
