"""Who takes how many shards: the next one goes to the worker who would be done first.

    worker 0, 1 s a shard   0 1   3 4        finishing after 4 s
    worker 1, 2 s a shard     2     5        finishing after 4 s

Greedy is optimal for any finishing times that never fall with the count: take an optimal dealing and give the
shards in greedy's order; the first that greedy puts elsewhere can move there without making the last worker later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from samestep.errors import PlanRefused


def greedy_shares(num_shards: int, finishing: Sequence[Callable[[int], float]]) -> tuple[int, ...]:
    """Shards of each worker, in rank order, so that the last to finish is as early as can be.

    `finishing[rank](count)` is the second in which that worker is done with `count` shards; it must not fall with
    the count, and `inf` says that so many are too many. Of workers that would finish together the lower rank gets
    the shard. Raises PlanRefused when there is nobody to work, or not all shards can be placed.
    """
    if num_shards < 0 or not finishing:
        raise PlanRefused(f"{num_shards} shards for {len(finishing)} workers: give 0 or more shards and a worker")
    counts = [0] * len(finishing)
    ends = [(curve(1), rank) for rank, curve in enumerate(finishing)]
    heapify(ends)
    for dealt in range(num_shards):
        end, rank = ends[0]
        if end == float("inf"):
            raise PlanRefused(
                f"the workers can take {dealt} shards, the step has {num_shards}: no plan places the rest"
            )
        counts[rank] += 1
        heapreplace(ends, (finishing[rank](counts[rank] + 1), rank))
    return tuple(counts)


@dataclass(frozen=True)
class Shares:
    """What each worker does, in rank order: `work` in shards, `state` in fractions of the update that sum to 1.

    They are two vectors since they answer to two limits: work follows speed, state follows speed as far as
    memory allows.
    """

    work: tuple[int, ...]
    state: tuple[float, ...]


def work_and_state(
    num_shards: int, finishing: Sequence[Callable[[int], float]], update_speeds: Sequence[float], rooms: Sequence[float]
) -> Shares:
    """Shards by finishing time, and the owned pieces of the update by update speed within each worker's room.

    `update_speeds` are relative (bytes/s do); `rooms` are the largest fractions of the optimizer's state that fit
    each worker's memory. Raises PlanRefused when the lists differ in length or the rooms together are less than 1.
    """
    if not len(finishing) == len(update_speeds) == len(rooms):
        raise PlanRefused(
            f"{len(finishing)} finishing times, {len(update_speeds)} update speeds and {len(rooms)} rooms: "
            "give one of each for every worker"
        )
    return Shares(greedy_shares(num_shards, finishing), state_shares(update_speeds, rooms))


def state_shares(speeds: Sequence[float], rooms: Sequence[float]) -> tuple[float, ...]:
    """Fractions that sum to 1, none above its room, so that the last to finish its piece is as early as can be.

    Whoever would overflow is filled to the brim and the rest goes to the others by speed, until nobody overflows.
    """
    if not speeds or min(speeds) <= 0 or min(rooms) < 0:
        raise PlanRefused(f"update speeds {list(speeds)} and rooms {list(rooms)}: speeds above 0, rooms of 0 or more")
    if sum(rooms) < 1:
        raise PlanRefused(
            f"the workers have room for {sum(rooms):.3g} of the optimizer's state: give them 1/{sum(rooms):.3g} "
            "times the memory, or more workers"
            if sum(rooms)
            else "no worker has room for any of the optimizer's state: give them memory"
        )
    full: set[int] = set()
    while True:
        left = 1 - sum(rooms[rank] for rank in full)
        pace = (
            left / sum(speed for rank, speed in enumerate(speeds) if rank not in full) if len(full) < len(speeds) else 0
        )
        over = {rank for rank in range(len(speeds)) if rank not in full and pace * speeds[rank] > rooms[rank]}
        if not over:
            return tuple(rooms[rank] if rank in full else pace * speed for rank, speed in enumerate(speeds))
        full |= over
