"""A step in simulated time: whoever is free takes the first of its choices that can be done.

A worker's choices are the heads of its queues: one queue per stage and kind where a rule is to find an order,
a single one where the order is given. A work can be done when its set has come, all who take part are free,
have it at the head of a queue, and have room.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from samestep.schedule.orders.work import Kind, Work, Works, weights_of, works_of
from samestep.schedule.places import Places


@dataclass(frozen=True)
class WorkTimes:
    """How long a set takes through a stage, in any unit of time."""

    forward: float
    backward: float  # in a stage that splits its backwards, to the gradient of its input
    weight: float = 0.0  # there, the rest

    def of(self, kind: Kind) -> float:
        return {"F": self.forward, "B": self.backward, "W": self.weight}[kind]


def queues_of(where: Places, rank: int) -> list[Works]:
    """A worker's works, a queue per stage and kind."""
    found: dict[tuple[int, Kind], list[Work]] = {}
    for work in works_of(where.grid, rank):
        found.setdefault((work.stage, work.kind), []).append(work)
    return [tuple(queue) for queue in found.values()]


class Racer:
    """A worker: what it has to do, what it did, what it keeps."""

    def __init__(self, where: Places, rank: int, queues: Sequence[Works], cap: float) -> None:
        self.rank, self.where, self.cap = rank, where, cap
        self.queues = [deque(queue) for queue in queues]
        self.taken: list[Work] = []
        self.free_at = 0.0
        self.held = 0  # sets, times stages
        own = [stage for stage, here in enumerate(where.grid.stages) if rank in here.workers]
        self.to_come = {stage: len(own) - 1 - number for number, stage in enumerate(own)}

    def heads(self) -> Iterator[Work]:
        return (queue[0] for queue in self.queues if queue)

    def has_room(self, work: Work) -> bool:
        """A set that is let in must be able to go on: places are left for it at the worker's later stages."""
        return work.kind != "F" or self.held + 1 + self.to_come[work.stage] <= self.cap

    def take(self, work: Work, end: float) -> None:
        self.taken.append(work)
        self.free_at = end
        next(queue for queue in self.queues if queue and queue[0] == work).popleft()
        self.held += held_after(self.where, self.rank, work)


def held_after(where: Places, rank: int, work: Work) -> int:
    """By how much a work changes what its worker keeps. A set is kept until its last part of backward."""
    if work.kind == "B":
        return -1 if not weights_of(where, rank, work.stage, work.set_index) else 0
    return 1 if work.kind == "F" else -1


class Race:
    """All workers, from the first work to the last."""

    def __init__(
        self, where: Places, paces: Sequence[WorkTimes], latency: float, racers: Sequence[Racer],
        rank_of: Callable[[Work], tuple[float, ...]],
    ) -> None:  # fmt: skip
        """rank_of: what is least is taken first."""
        self.where, self.paces, self.latency, self.racers, self.rank_of = where, paces, latency, racers, rank_of
        self.now = self.end = 0.0
        self.come = {Work("F", 0, index): 0.0 for index in range(len(where.sets))}  # when a work's set is there
        self.wakes = [(0.0, racer.rank) for racer in racers]

    def run(self) -> "Race":
        while self.wakes or self.give_way():
            self.now, rank = heappop(self.wakes)
            choices = sorted(self.racers[rank].heads(), key=self.rank_of)
            chosen = next((work for work in choices if self.possible(rank, work)), None)
            if chosen is not None:
                self.take(rank, chosen)
        return self

    def takers(self, rank: int, work: Work) -> list[Racer]:
        """Who takes part; every worker makes its own gradients of weights."""
        ranks = (rank,) if work.kind == "W" else self.where.participants(work.stage, self.where.sets[work.set_index])
        return [self.racers[taker] for taker in ranks]

    def possible(self, rank: int, work: Work, *, within_caps: bool = True) -> bool:
        return self.come.get(work, inf) <= self.now and all(
            racer.free_at <= self.now and work in racer.heads() and (racer.has_room(work) or not within_caps)
            for racer in self.takers(rank, work)
        )

    def take(self, rank: int, work: Work) -> None:
        end = self.now + self.paces[work.stage].of(work.kind)
        self.end = max(self.end, end)
        for racer in self.takers(rank, work):
            racer.take(work, end)
            heappush(self.wakes, (end, racer.rank))
        for follower, delay in self.followers(work):
            self.come[follower] = end + delay
            for racer in self.takers(rank, follower):
                heappush(self.wakes, (end + delay, racer.rank))

    def followers(self, work: Work) -> Iterator[tuple[Work, float]]:
        """What a work makes possible, and how long a message takes to there."""
        stage, index, last = work.stage, work.set_index, len(self.paces) - 1
        if work.kind == "F":
            yield (
                (Work("F", stage + 1, index), self.delay(stage, index))
                if stage < last
                else (Work("B", stage, index), 0)
            )
        elif work.kind == "B":
            yield Work("W", stage, index), 0
            if stage > 0:
                yield Work("B", stage - 1, index), self.delay(stage - 1, index)

    def delay(self, stage: int, index: int) -> float:
        """Over the cut after a stage: nothing where no shard of the set changes its worker."""
        before, after = self.where.owner[stage], self.where.owner[stage + 1]
        return self.latency if any(before[shard] != after[shard] for shard in self.where.sets[index]) else 0.0

    def give_way(self) -> bool:
        """Nothing can be done within the caps any more: the earliest forward goes ahead. False if all is done."""
        heads = {work: racer.rank for racer in self.racers for work in racer.heads() if work.kind == "F"}
        stuck = [work for work, rank in heads.items() if self.possible(rank, work, within_caps=False)]
        if stuck:
            earliest = min(stuck, key=lambda work: (work.set_index, work.stage))
            self.take(heads[earliest], earliest)
        return bool(stuck)
