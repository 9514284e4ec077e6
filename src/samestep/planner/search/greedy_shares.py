"""Greedy shares: the next shard goes to the worker that would finish first.

    worker 0, 1 s a shard   0 1   3 4        finishing after 4 s
    worker 1, 2 s a shard     2     5        finishing after 4 s

Greedy is optimal for any finishing times that never fall with the count: take an optimal assignment and give the
shards in greedy's order; the first that greedy puts elsewhere can move there without making the last worker later.
"""

from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace

from samestep.errors import PlanRefused


def greedy_shares(num_shards: int, finishing: Sequence[Callable[[int], float]]) -> tuple[int, ...]:
    """Shards of each worker, in rank order, so that the last to finish is as early as can be.

    `finishing[rank](count)` is the time at which that worker is done with `count` shards; it must not fall with
    the count, and is `inf` for more shards than the worker can take. Of workers that would finish together the lower
    rank gets the shard. Raises PlanRefused when there is no worker, or when not all shards can be placed.
    """
    if num_shards < 0 or not finishing:
        raise PlanRefused(f"{num_shards} shards for {len(finishing)} workers: give 0 or more shards and a worker")
    counts = [0] * len(finishing)
    ends = [(curve(1), rank) for rank, curve in enumerate(finishing)]
    heapify(ends)
    for given in range(num_shards):
        end, rank = ends[0]
        if end == float("inf"):
            raise PlanRefused(
                f"the workers can take {given} shards, the step has {num_shards}: no plan places the rest"
            )
        counts[rank] += 1
        heapreplace(ends, (finishing[rank](counts[rank] + 1), rank))
    return tuple(counts)
