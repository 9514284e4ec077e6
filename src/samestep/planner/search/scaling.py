"""How a job would scale: the best plan, and its step, for each number of workers of a cluster.

More workers than a plan can use may stay idle, so what was best for fewer is never lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.search.scaling_curve import Point, Scaling
from samestep.planner.search.search import Candidate, SearchSpace, search

FEW = 16  # workers up to which every number is tried


def scaling(
    chain: Chain,
    costs: MeasuredCosts,
    cluster: Cluster,
    numerics: Numerics,
    freedom: SearchSpace,
    counts: Sequence[int],
    source: str = "",
) -> Scaling:
    """freedom.workers does not count, `counts` does. Raises PlanRefused when not even one worker has a plan."""
    best: dict[int, Candidate] = dict(improving(chain, costs, cluster, numerics, freedom, counts))
    alone = best[1].seconds
    points = tuple(point(n, best[n], chain.batch_size, alone) for n in sorted(set(counts)))
    return Scaling(
        points, chain.shards, chain.batch_size, numerics.line(), cluster.fingerprint(), source, len(chain.units)
    )


def improving(
    chain: Chain,
    costs: MeasuredCosts,
    cluster: Cluster,
    numerics: Numerics,
    freedom: SearchSpace,
    counts: Sequence[int],
) -> Iterator[tuple[int, Candidate]]:
    """For 1, the counts, and as many as there are shards: the best with so many workers or fewer."""
    most = max(counts)
    best: Candidate | None = None
    for n in sorted({1, *counts, min(most, chain.shards)}):
        try:
            found = search(chain, costs, cluster, numerics, replace(freedom, workers=(n,)))[0]
        except PlanRefused:
            if best is None:
                raise
            found = best
        best = found if best is None or found.seconds < best.seconds else best
        yield n, best


def point(workers: int, best: Candidate, batch_size: int, alone: float) -> Point:
    seconds = best.seconds
    return Point(
        workers,
        best.plan.workers,
        best.kind,
        best.name,
        seconds,
        best.estimate.parts,
        batch_size / seconds,
        alone / seconds / workers,
    )


def doubling(most: int) -> tuple[int, ...]:
    """Numbers of workers to try: each one up to FEW, then the powers of two, and the most."""
    powers = (1 << power for power in range(most.bit_length()))
    return tuple(sorted({*range(1, min(most, FEW) + 1), *powers, most}))
