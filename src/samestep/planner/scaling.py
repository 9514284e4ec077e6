"""How a job would scale: the best plan, and its step, for each number of workers of a cluster.

More workers than a plan can use may stay idle, so what was best for fewer is never lost.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from samestep.cluster import Cluster
from samestep.errors import PlanRefused
from samestep.numerics import Numerics
from samestep.planner.chain import Chain
from samestep.planner.costs import Costs
from samestep.planner.search import Candidate, Freedom, search

FEW = 16  # workers up to which every number is tried


@dataclass(frozen=True)
class Point:
    """The best plan on the first `workers` workers."""

    workers: int
    used: int  # of them, by the plan
    kind: str
    plan: str  # its name
    seconds: float  # of a step
    parts: Mapping[str, float]  # they add up to seconds
    rows_per_second: float
    efficiency: float  # against one worker: 1.0 where n workers are n times as fast


@dataclass(frozen=True)
class Scaling:
    """Of one job on one cluster, with one set of numerics."""

    points: tuple[Point, ...]
    shards: int
    batch_size: int
    numerics: str
    cluster: str  # its fingerprint
    costs: str  # where they are from
    units: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Scaling":
        return Scaling(**{**fields, "points": tuple(Point(**point) for point in fields["points"])})


def scaling(
    chain: Chain, costs: Costs, cluster: Cluster, numerics: Numerics, freedom: Freedom, counts: Sequence[int],
    source: str = "",
) -> Scaling:  # fmt: skip
    """freedom.workers does not count, `counts` does. Raises PlanRefused when not even one worker has a plan."""
    best: dict[int, Candidate] = dict(improving(chain, costs, cluster, numerics, freedom, counts))
    alone = best[1].seconds
    points = tuple(point(n, best[n], chain.batch_size, alone) for n in sorted(set(counts)))
    return Scaling(
        points, chain.shards, chain.batch_size, numerics.line(), cluster.fingerprint(), source, len(chain.units)
    )


def improving(
    chain: Chain, costs: Costs, cluster: Cluster, numerics: Numerics, freedom: Freedom, counts: Sequence[int]
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
