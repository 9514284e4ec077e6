"""Scaling of a job: the best plan, and its step, for each number of workers of a cluster.

Workers that a plan cannot use may stay idle, so the best plan for fewer workers remains available.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from samestep.errors import PlanRefused
from samestep.planner.search.scaling_curve import Point, Scaling
from samestep.planner.search.search import Candidate, PlanningProblem, SearchSpace, search

FEW = 16  # workers up to which every number is tried


def scaling(problem: PlanningProblem, freedom: SearchSpace, counts: Sequence[int], source: str = "") -> Scaling:
    """The best plan for each of `counts`, whatever freedom.workers is. Raises PlanRefused when one worker has none."""
    best: dict[int, Candidate] = dict(improving(problem, freedom, counts))
    chain, alone = problem.chain, best[1].seconds
    points = tuple(point(n, best[n], chain.batch_size, alone) for n in sorted(set(counts)))
    numerics, cluster = problem.numerics.line(), problem.cluster.fingerprint()
    return Scaling(points, chain.shards, chain.batch_size, numerics, cluster, source, len(chain.units))


def improving(problem: PlanningProblem, freedom: SearchSpace, counts: Sequence[int]) -> Iterator[tuple[int, Candidate]]:
    """The best candidate with at most n workers, for n of 1, the counts, and the number of shards."""
    most = max(counts)
    best: Candidate | None = None
    for n in sorted({1, *counts, min(most, problem.chain.shards)}):
        try:
            found = search(problem, replace(freedom, workers=(n,)))[0]
        except PlanRefused:
            if best is None:
                raise
            found = best
        best = found if best is None or found.seconds < best.seconds else best
        yield n, best


def point(workers: int, best: Candidate, batch_size: int, alone: float) -> Point:
    seconds, used = best.seconds, best.plan.workers
    rate, efficiency = batch_size / seconds, alone / seconds / workers
    return Point(workers, used, best.kind, best.name, seconds, best.estimate.parts, rate, efficiency)


def doubling(most: int) -> tuple[int, ...]:
    """Numbers of workers to try: each one up to FEW, then powers of two, and `most`."""
    powers = (1 << power for power in range(most.bit_length()))
    return tuple(sorted({*range(1, min(most, FEW) + 1), *powers, most}))
