"""Flips: circumstances in which another plan wins, found by searching again.

links    the bandwidth between hosts is halved or doubled until another plan wins; then bisection
batch    in powers of two; times and activations are taken as proportional to the rows, which is an approximation
workers  the best plan for each number of them
slices   the search with slices allowed, where the numerics have none
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from samestep.errors import PlanRefused
from samestep.numerics.numerics import num_shards_of
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Link
from samestep.plan.plan import Plan
from samestep.plan.prediction import in_ms
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.measured_costs import MeasuredCosts, Pair, Table
from samestep.planner.explain.plan_comparison import shape
from samestep.planner.search.decision import Decision
from samestep.planner.search.search import TIE, Candidate, search

Won = tuple[Candidate, float]  # the winner, and the seconds of the pick there
Flipped = tuple[float, Won]  # the factor from which on it wins

LARGE = 4_000  # layers times workers up to which the search is repeated


@dataclass(frozen=True)
class Flip:
    """A circumstance in which `plan` wins: `value` bytes/s, rows, or workers, and beyond."""

    what: str  # link, batch, workers
    value: float
    plan: str
    seconds: float  # of that plan there
    pick: float  # seconds of the pick there
    text: str


def flips(decision: Decision) -> list[Flip]:
    """All flips; none for chains and clusters that are too large to be searched many times."""
    if len(decision.profile.chain.units) * decision.cluster.workers > LARGE:
        return []
    return [*link_flips(decision), *batch_flips(decision), *worker_flips(decision)]


def winner(decision: Decision) -> Won | None:
    """The plan that beats the pick in circumstances that changed since the ranking, with the pick's seconds there."""
    try:
        best = search(decision.problem, decision.freedom)[0]
    except PlanRefused:
        return None
    return duel(decision, best.plan) if shape(best.plan) != shape(decision.pick.plan) else None


def duel(decision: Decision, plan: Plan) -> Won | None:
    """The same for one given plan."""
    try:
        found = decision.problem.candidate(plan)
        own = decision.problem.estimate(decision.pick.plan).seconds
    except PlanRefused:
        return None
    return (found, own) if found.seconds < own * (1 - TIE) else None


def first_flip(changed: Callable[[float], Decision], factors: Sequence[float], bisections: int) -> Flipped | None:
    """The factor closest to 1 at which another plan wins: found by searching, then by bisection with that plan."""
    lost = 1.0  # the last factor at which the pick still wins
    for factor in factors:
        won = winner(changed(factor))
        if won is None:
            lost = factor
            continue
        for _ in range(bisections):
            middle = math.sqrt(factor * lost)
            inside = duel(changed(middle), won[0].plan)
            factor, lost, won = (factor, middle, won) if inside is None else (middle, lost, inside)
        return factor, won
    return None


def factors_both_ways(base: float, most: int) -> list[list[float]]:
    """Factors downwards, and factors upwards."""
    return [[base ** (sign * n) for n in range(1, most + 1)] for sign in (-1, 1)]


# Links.


def link_flips(decision: Decision) -> Iterator[Flip]:
    """Flips by the bandwidth between hosts; none where all workers are on one host."""
    slowest = decision.cluster.slowest_between_hosts(range(decision.cluster.workers))
    if slowest is None:
        return
    for factors in factors_both_ways(4.0, 4):
        found = first_flip(lambda f: replace(decision, cluster=with_bandwidth(decision.cluster, f)), factors, 6)
        if found is not None:
            factor, won = found
            where = f"{'below' if factor < 1 else 'above'} {bits(factor * slowest.bandwidth)} between hosts"
            yield flip("link", factor * slowest.bandwidth, where, won)


def flip(what: str, value: float, where: str, won: Won, remark: str = "") -> Flip:
    best, own = won
    text = f"{where}, {best.name} wins: {in_ms(best.seconds)} ms there, the pick {in_ms(own)} ms{remark}"
    return Flip(what, value, best.name, best.seconds, own, text)


def with_bandwidth(cluster: Cluster, factor: float) -> Cluster:
    """The cluster with `factor` times the bandwidth between hosts."""

    def scaled(link: Link) -> Link:
        return replace(link, bandwidth=link.bandwidth * factor)

    return replace(
        cluster,
        between=None if cluster.between is None else scaled(cluster.between),
        links=tuple((a, b, link if a == b else scaled(link)) for a, b, link in cluster.links),
    )


def bits(bandwidth: float) -> str:
    gigabits = bandwidth * 8 / 1e9
    return f"{gigabits:.3g} Gbit/s" if gigabits >= 1 else f"{gigabits * 1e3:.3g} Mbit/s"


# The batch.


def batch_flips(decision: Decision) -> Iterator[Flip]:
    """Flips by the batch: in either direction the first power of two at which another plan wins."""
    chain = decision.profile.chain
    for factors in factors_both_ways(4.0, 3):
        found = first_flip(lambda f: with_rows(decision, f), [f for f in factors if keeps_shards(chain, f)], 1)
        if found is not None:
            rows = round(chain.batch_size * found[0])
            remark = " (times taken to go with the rows)"
            yield flip("batch", rows, f"with {rows} rows in a batch", found[1], remark)


def keeps_shards(chain: Chain, factor: float) -> bool:
    """Whether a batch of `factor` times the rows is cut into as many shards."""
    rows = math.floor(chain.batch_size * factor)
    return num_shards_of(rows, chain.shards) == num_shards_of(chain.batch_size, chain.shards)


def with_rows(decision: Decision, factor: float) -> Decision:
    profile = decision.profile
    return replace(
        decision,
        profile=replace(
            profile, chain=chain_with_rows(profile.chain, factor), costs=costs_with_rows(profile.costs, factor)
        ),
    )


def chain_with_rows(chain: Chain, factor: float) -> Chain:
    """The chain with `factor` times the rows in a shard."""
    units = tuple(
        replace(
            unit,
            **{name: round(getattr(unit, name) * factor) for name in ("crossing", "crossing_back", "keeps", "makes")},
            work=unit.work * factor,
        )
        for unit in chain.units
    )
    regions = tuple(replace(r, takes=round(r.takes * factor), makes=round(r.makes * factor)) for r in chain.regions)
    return replace(chain, units=units, regions=regions, batch_size=round(chain.batch_size * factor))


def costs_with_rows(costs: MeasuredCosts, factor: float) -> MeasuredCosts:
    def scaled(table: Table) -> Table:
        def all_of(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
            return tuple(pair.scaled(factor) for pair in pairs)

        return replace(
            table,
            whole=table.whole.scaled(factor),
            units=all_of(table.units),
            regions=all_of(table.regions),
            rests=all_of(table.rests),
            load=table.load * factor,
        )

    return replace(costs, alone=scaled(costs.alone), together=scaled(costs.together))


# Workers, and slices.


def worker_flips(decision: Decision) -> Iterator[Flip]:
    """The best plan on every other number of workers of the cluster, or on powers of two of them."""
    pick, most = decision.pick, decision.cluster.workers
    counts = range(1, most + 1) if most <= 8 else [2**n for n in range(most.bit_length())]
    for workers in counts:
        best = None if workers == pick.plan.workers else best_on(decision, workers)
        if best is not None:
            who = f"on {workers} worker{'s' * (workers > 1)}"
            text = f"{who} the best is {best.name}: {in_ms(best.seconds)} ms, the pick {in_ms(pick.seconds)} ms"
            yield Flip("workers", workers, best.name, best.seconds, pick.seconds, text)


def best_on(decision: Decision, workers: int) -> Candidate | None:
    if workers in decision.freedom.workers:
        return next((one for one in decision.ranking if one.plan.workers == workers), None)
    try:
        return search(decision.problem, replace(decision.freedom, workers=(workers,)))[0]
    except PlanRefused:
        return None


def gain_of_slices(decision: Decision) -> str:
    """The gain of slices where the numerics have none, in words; empty where they are allowed or unknown."""
    chain = decision.profile.chain
    if decision.freedom.may_slice or not chain.regions or max(decision.freedom.workers) == 1:
        return ""
    found = search(decision.problem, replace(decision.freedom, may_slice=True))
    best = next((one for one in found if any(stage.slices for stage in one.plan.stages)), None)
    if best is None:
        return ""
    gain = decision.pick.seconds - best.seconds
    slices = max(region.slices for region in chain.regions)
    said = f"{in_ms(gain)} ms less" if gain > 0 else f"{in_ms(-gain)} ms more: nothing to gain"
    return f"with --slices {slices} (other numbers), {best.name} would take {in_ms(best.seconds)} ms, {said}"
