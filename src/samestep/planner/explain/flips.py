"""What would flip the choice: the search again under other circumstances, until another plan wins.

links    the bandwidth between hosts is halved or doubled until another plan wins; then bisection
batch    in powers of two; times and activations are taken to go with the rows, which is an approximation
workers  the best plan for each number of them
slices   the search with slices allowed, where the numerics have none
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from samestep.errors import PlanRefused
from samestep.numerics.numerics import num_shards_of
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Link
from samestep.plan.plan import Plan
from samestep.plan.prediction import in_ms
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.estimate import estimate
from samestep.planner.cost.measured_costs import MeasuredCosts, Pair, Table
from samestep.planner.explain.comparison import shape
from samestep.planner.search.decision import Decision
from samestep.planner.search.search import TIE, Candidate, plan_kind, search

Won = tuple[Candidate, float]  # who wins, and the seconds of the pick there
Flipped = tuple[float, Won]  # and from which factor on

LARGE = 4_000  # layers times workers, up to which the search is repeated so often


@dataclass(frozen=True)
class Flip:
    """`value` is bytes/s, rows, or workers; at it, and beyond it, `plan` wins."""

    what: str  # link, batch, workers
    value: float
    plan: str
    seconds: float  # of that plan there
    pick: float  # seconds of the pick there
    text: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def flips(decision: Decision) -> list[Flip]:
    """Empty for what is too large to be searched many times."""
    if len(decision.profile.chain.units) * decision.cluster.workers > LARGE:
        return []
    return [*link_flips(decision), *batch_flips(decision), *worker_flips(decision)]


def winner(decision: Decision) -> Won | None:
    """The plan that beats the pick in circumstances that changed since the ranking; and the pick's seconds there."""
    profile = decision.profile
    try:
        best = search(profile.chain, profile.costs, decision.cluster, decision.numerics, decision.freedom)[0]
    except PlanRefused:
        return None
    return duel(decision, best.plan) if shape(best.plan) != shape(decision.pick.plan) else None


def duel(decision: Decision, plan: Plan) -> Won | None:
    """The same for one plan."""
    chain, costs, cluster = decision.profile.chain, decision.profile.costs, decision.cluster
    try:
        found = estimate(plan, chain, costs, cluster)
        own = estimate(decision.pick.plan, chain, costs, cluster).seconds
    except PlanRefused:
        return None
    return (Candidate(plan_kind(plan), found), own) if found.seconds < own * (1 - TIE) else None


def first_flip(changed: Callable[[float], Decision], factors: Sequence[float], bisections: int) -> Flipped | None:
    """The factor nearest to 1 at which another plan wins: found by searching, then by holding it against the pick."""
    near = 1.0
    for far in factors:
        won = winner(changed(far))
        if won is None:
            near = far
            continue
        for _ in range(bisections):
            middle = math.sqrt(far * near)
            inside = duel(changed(middle), won[0].plan)
            far, near, won = (far, middle, won) if inside is None else (middle, near, inside)
        return far, won
    return None


def factors_both_ways(base: float, most: int) -> list[list[float]]:
    """Factors downwards, and upwards."""
    return [[base ** (sign * n) for n in range(1, most + 1)] for sign in (-1, 1)]


# Links.


def link_flips(decision: Decision) -> Iterator[Flip]:
    """None where all workers are on one host."""
    speed = bandwidth_between(decision.cluster)
    if speed is None:
        return
    for factors in factors_both_ways(4.0, 4):
        found = first_flip(lambda f: replace(decision, cluster=with_bandwidth(decision.cluster, f)), factors, 6)
        if found is not None:
            factor, won = found
            where = f"{'below' if factor < 1 else 'above'} {bits(factor * speed)} between hosts"
            yield flip("link", factor * speed, where, won)


def flip(what: str, value: float, where: str, won: Won, remark: str = "") -> Flip:
    best, own = won
    text = f"{where}, {best.name} wins: {in_ms(best.seconds)} ms there, the pick {in_ms(own)} ms{remark}"
    return Flip(what, value, best.name, best.seconds, own, text)


def bandwidth_between(cluster: Cluster) -> float | None:
    """Bytes/s of the slowest link between two hosts."""
    first = {host: worker for worker, host in reversed(list(enumerate(cluster.hosts_of_workers())))}
    links = [cluster.link(a, b) for a in first.values() for b in first.values() if a != b]
    return min((link.bandwidth for link in links), default=None)


def with_bandwidth(cluster: Cluster, factor: float) -> Cluster:
    """The same cluster with so many times the bandwidth between hosts."""

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
    """In either direction the first power of two at which another plan wins."""
    chain = decision.profile.chain
    for factors in factors_both_ways(4.0, 3):
        found = first_flip(lambda f: with_rows(decision, f), [f for f in factors if keeps_shards(chain, f)], 1)
        if found is not None:
            rows = round(chain.batch_size * found[0])
            remark = " (times taken to go with the rows)"
            yield flip("batch", rows, f"with {rows} rows in a batch", found[1], remark)


def keeps_shards(chain: Chain, factor: float) -> bool:
    """Whether a batch of so many times the rows is cut into as many shards."""
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
    """With `factor` times the rows in a shard."""
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
    """The best plan on every other number of workers that the cluster has, or on powers of two of them."""
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
    profile, freedom = decision.profile, replace(decision.freedom, workers=(workers,))
    try:
        return search(profile.chain, profile.costs, decision.cluster, decision.numerics, freedom)[0]
    except PlanRefused:
        return None


def gain_of_slices(decision: Decision) -> str:
    """What slices would gain, where the numerics have none. Empty where they may be had, or nothing is known."""
    chain = decision.profile.chain
    if decision.freedom.may_slice or not chain.regions or max(decision.freedom.workers) == 1:
        return ""
    allowed = replace(decision.freedom, may_slice=True)
    found = search(chain, decision.profile.costs, decision.cluster, decision.numerics, allowed)
    best = next((one for one in found if any(stage.slices for stage in one.plan.stages)), None)
    if best is None:
        return ""
    gain = decision.pick.seconds - best.seconds
    slices = max(region.slices for region in chain.regions)
    said = f"{in_ms(gain)} ms less" if gain > 0 else f"{in_ms(-gain)} ms more: nothing to gain"
    return f"with --slices {slices} (other numbers), {best.name} would take {in_ms(best.seconds)} ms, {said}"
