"""A race: a step in simulated time, in which every free worker takes the first of its choices that is possible.

A worker's choices are the heads of its queues: one queue per stage and kind where a rule is to find an order,
a single one where the order is given. A work is possible when its set has arrived and all participants are free,
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
    """Times of a set through a stage, in any unit."""

    forward: float
    backward: float  # in a stage that splits its backwards: until the gradient of its input
    weight: float = 0.0  # the rest in such a stage

    def of(self, kind: Kind) -> float:
        return {"F": self.forward, "B": self.backward, "W": self.weight}[kind]


def queues_of(where: Places, rank: int) -> list[Works]:
    """A worker's work in one queue per stage and kind."""
    found: dict[tuple[int, Kind], list[Work]] = {}
    for work in works_of(where.grid, rank):
        found.setdefault((work.stage, work.kind), []).append(work)
    return [tuple(queue) for queue in found.values()]


class Racer:
    """A worker in the race: its queues, the work it has taken, the sets it keeps."""

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
        """Whether the worker may keep the set, and has room for it at its later stages, so that it can continue."""
        return work.kind != "F" or self.held + 1 + self.to_come[work.stage] <= self.cap

    def take(self, work: Work, end: float) -> None:
        self.taken.append(work)
        self.free_at = end
        next(queue for queue in self.queues if queue and queue[0] == work).popleft()
        self.held += held_after(self.where, self.rank, work)


def held_after(where: Places, rank: int, work: Work) -> int:
    """The change by a work of the sets that its worker keeps. A set is kept until the last part of its backward."""
    if work.kind == "B":
        return -1 if not weights_of(where, rank, work.stage, work.set_index) else 0
    return 1 if work.kind == "F" else -1


class Race:
    """All workers, from the first work to the last."""

    def __init__(
        self, where: Places, paces: Sequence[WorkTimes], latency: float, racers: Sequence[Racer],
        rank_of: Callable[[Work], tuple[float, ...]],
    ) -> None:  # fmt: skip
        """rank_of: the possible work with the least rank is taken first."""
        self.where, self.paces, self.latency, self.racers, self.rank_of = where, paces, latency, racers, rank_of
        self.now = self.end = 0.0
        self.arrivals = {Work("F", 0, index): 0.0 for index in range(len(where.sets))}  # arrival time of a work's set
        self.wakes = [(0.0, racer.rank) for racer in racers]

    def run(self) -> "Race":
        while self.wakes or self.exceed_caps():
            self.now, rank = heappop(self.wakes)
            choices = sorted(self.racers[rank].heads(), key=self.rank_of)
            chosen = next((work for work in choices if self.possible(rank, work)), None)
            if chosen is not None:
                self.take(rank, chosen)
        return self

    def takers(self, rank: int, work: Work) -> list[Racer]:
        """The participants of a work; every worker makes its own gradients of weights."""
        ranks = (rank,) if work.kind == "W" else self.where.participants(work.stage, self.where.sets[work.set_index])
        return [self.racers[taker] for taker in ranks]

    def possible(self, rank: int, work: Work, *, within_caps: bool = True) -> bool:
        return self.arrivals.get(work, inf) <= self.now and all(
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
            self.arrivals[follower] = end + delay
            for racer in self.takers(rank, follower):
                heappush(self.wakes, (end + delay, racer.rank))

    def followers(self, work: Work) -> Iterator[tuple[Work, float]]:
        """Work that a work makes possible, with the delay of the message to it."""
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
        """Delay over the cut after a stage; 0 where no shard of the set changes its worker."""
        before, after = self.where.owner[stage], self.where.owner[stage + 1]
        return self.latency if any(before[shard] != after[shard] for shard in self.where.sets[index]) else 0.0

    def exceed_caps(self) -> bool:
        """Take the earliest forward beyond the caps, when nothing is possible within them. False if all is done."""
        heads = {work: racer.rank for racer in self.racers for work in racer.heads() if work.kind == "F"}
        stuck = [work for work, rank in heads.items() if self.possible(rank, work, within_caps=False)]
        if stuck:
            earliest = min(stuck, key=lambda work: (work.set_index, work.stage))
            self.take(heads[earliest], earliest)
        return bool(stuck)
