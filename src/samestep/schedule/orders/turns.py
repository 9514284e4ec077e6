"""Turns: orders of all workers, from one order of the whole step.

A worker has a line of forwards and a line of backwards, round by round. Where chunks go round the same groups
of workers, it does its warm-up of forwards and then takes one of each in turn: the classical schedules.

Elsewhere (three stages on two workers, there and back, groups that overlap) the next work in turn often has not
arrived yet. Then time is simulated, and a free worker takes the first possible backward of its line, else a forward,
as long as it is not further ahead than in turn:

    stages on workers 0, 1, 0     worker 0   F0.0 F0.1 F2.0 B2.0 B2.0 F0.2 ...

In both cases, if all workers wait for one another, the earliest possible work goes first, on all its participants.
So work is always taken in an order that the step allows, every worker has its part of it, and no grid can deadlock.
No worker waits for the gradients of weights: here they follow their backward at once.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, chain, islice, product

from samestep.schedule.grid import Grid
from samestep.schedule.orders.work import Kind, Work, Works, stage_chunks, weights_of
from samestep.schedule.places import Places, places

DURATION: dict[Kind, int] = {"F": 1, "B": 2}  # where an order follows time


@cache
def line_up(grid: Grid, rounds: tuple[int, ...], per_chunk: int | None) -> tuple[Works, ...]:
    """Orders of all workers, from one order of the whole step. per_chunk: forwards of the warm-up for every chunk
    that follows the worker's last; None: all forwards."""
    turns = Turns(places(grid), rounds, per_chunk)
    classical = per_chunk is None or is_classical(grid)
    step = turns.in_turn if classical else turns.as_possible
    while step() or turns.take_earliest():
        pass
    return tuple(tuple(with_weights(turns.where, worker.rank, worker.taken)) for worker in turns.workers)


def with_weights(where: Places, rank: int, works: Sequence[Work], later: int = 0) -> Iterator[Work]:
    """A worker's forwards and backwards, with the gradients of weights deferred by `later` backwards."""
    waiting: deque[Work] = deque()
    for work in works:
        yield work
        if work.kind == "B":
            waiting.extend(weights_of(where, rank, work.stage, work.set_index))
            if len(waiting) > later:
                yield waiting.popleft()
    yield from waiting


def is_classical(grid: Grid) -> bool:
    """Whether the chunks go round the same groups of workers, as in the classical schedules."""
    groups = [grid.stages[chunk.start].workers for chunk in stage_chunks(grid)]
    p = len(set(groups))
    disjoint = len(set(chain.from_iterable(groups))) == sum(map(len, groups[:p]))
    return disjoint and groups == groups[:p] * (len(groups) // p)


def passages(where: Places, rank: int, rounds: Sequence[int], kind: Kind) -> Iterator[Works]:
    """A worker's line of one kind: its work on each set in each chunk, round by round."""
    own = [chunk for chunk in stage_chunks(where.grid) if rank in where.grid.stages[chunk.start].workers]
    here = {stage: where.sets_at(rank, stage) for chunk in own for stage in chunk}
    ends = list(accumulate(rounds))
    by_round: dict[int, list[int]] = {}
    for index in sorted(set().union(*here.values())):
        by_round.setdefault(bisect_right(ends, index), []).append(index)
    for indices in by_round.values():
        for chunk, index in product(own if kind == "F" else own[::-1], indices):
            stages = chunk if kind == "F" else reversed(chunk)
            works = tuple(Work(kind, s, index) for s in stages if index in here[s])
            if works:
                yield works


def warm_up_of(grid: Grid, forwards: Sequence[Works], per_chunk: int) -> int:
    """Forwards until the worker's last chunk, and `per_chunk` more for every chunk that follows it."""
    if not forwards:
        return 0
    final = max(passage[-1].stage for passage in forwards)
    until = next(number for number, passage in enumerate(forwards) if passage[-1].stage == final)
    return until + per_chunk * sum(chunk.start > final for chunk in stage_chunks(grid))


class Turns:
    """Turns of all workers, and the work of the step that is done."""

    def __init__(self, where: Places, rounds: Sequence[int], per_chunk: int | None) -> None:
        self.where = where
        self.done: set[Work] = set()
        self.now = 0
        self.busy: dict[Work, int] = {}  # work in progress, with the time when it ends
        self.workers = [WorkerTurns(where, rank, rounds, per_chunk) for rank in range(where.grid.num_workers)]
        self.groups = {
            (stage, index): [self.workers[rank] for rank in where.participants(stage, shards)]
            for stage in range(len(where.grid.stages))
            for index, shards in enumerate(where.sets)
        }

    def possible(self, work: Work) -> bool:
        """Whether the set has arrived at this stage, and all participants are done with earlier sets."""
        if work.kind == "F":
            arrived = work.stage == 0 or Work("F", work.stage - 1, work.set_index) in self.done
        elif work.stage == len(self.where.grid.stages) - 1:
            arrived = Work("F", work.stage, work.set_index) in self.done
        else:
            arrived = Work("B", work.stage + 1, work.set_index) in self.done
        return arrived and all(w.next_at(work.kind, work.stage) == work for w in self.takers(work))

    def takers(self, work: Work) -> list["WorkerTurns"]:
        return self.groups[work.stage, work.set_index]

    def take(self, work: Work) -> None:
        for worker in self.takers(work):
            worker.take(work)

    def in_turn(self) -> bool:
        """Let every worker take its next work in turn, as far as possible. False if no worker could."""
        moved = [worker.advance(self) for worker in self.workers]
        return any(moved)

    def as_possible(self) -> bool:
        """Let every free worker take the first of its choices that is possible, and advance time until some work ends.
        False if no worker is busy then."""
        for worker in self.workers:
            choice = next((work for work in worker.choices() if self.possible(work) and self.all_free(work)), None)
            if choice is not None:
                self.take(choice)
                self.busy[choice] = self.now + DURATION[choice.kind]
        self.now = min(self.busy.values(), default=self.now)
        ended = [work for work, stop in self.busy.items() if stop == self.now]
        for work in ended:
            del self.busy[work]
        self.done.update(ended)
        return bool(ended)

    def all_free(self, work: Work) -> bool:
        """Whether no participant is busy."""
        busy = {worker.rank for other in self.busy for worker in self.takers(other)}
        return busy.isdisjoint(worker.rank for worker in self.takers(work))

    def take_earliest(self) -> bool:
        """Take the earliest possible backward (it frees memory), else forward, when no worker can take its turn."""
        heads = {work for worker in self.workers for work in worker.heads() if self.possible(work)}
        if heads:
            earliest = min(heads, key=lambda work: (work.kind, work.set_index, work.stage))
            self.take(earliest)
            self.done.add(earliest)
        return bool(heads)


class WorkerTurns:
    """One worker's two lines, and the work that it has taken from them."""

    def __init__(self, where: Places, rank: int, rounds: Sequence[int], per_chunk: int | None) -> None:
        self.rank = rank
        forwards = list(passages(where, rank, rounds, "F"))
        backwards = list(passages(where, rank, rounds, "B"))
        self.warm_up = len(forwards) if per_chunk is None else warm_up_of(where.grid, forwards, per_chunk)
        self.ahead = 0  # forward passages without their backward
        self.taken: list[Work] = []
        self.lines: dict[Kind, dict[Work, None]] = {
            "F": dict.fromkeys(chain.from_iterable(forwards)),
            "B": dict.fromkeys(chain.from_iterable(backwards)),
        }
        self.place = {work: at for line in self.lines.values() for at, work in enumerate(line)}
        self.ends = {passage[-1] for passage in (*forwards, *backwards)}
        self.at_stage: dict[tuple[Kind, int], dict[Work, None]] = {}
        for work in chain.from_iterable((*forwards, *backwards)):
            self.at_stage.setdefault((work.kind, work.stage), {})[work] = None

    def next_in_turn(self) -> Work | None:
        """A forward while it may be further ahead, else a backward."""
        forwards, backwards = self.lines["F"], self.lines["B"]
        line = forwards if forwards and self.ahead <= self.warm_up else backwards
        return next(iter(line), None)

    def next_at(self, kind: Kind, stage: int) -> Work | None:
        return next(iter(self.at_stage.get((kind, stage), ())), None)

    def choices(self) -> Iterator[Work]:
        """The next of each stage, in the lines' order: backwards, then forwards while it may be further ahead."""
        heads = sorted(self.heads(), key=self.place.__getitem__)
        yield from (work for work in heads if work.kind == "B")
        if self.ahead <= self.warm_up:
            yield from (work for work in heads if work.kind == "F")

    def heads(self) -> Iterator[Work]:
        for line in self.at_stage.values():
            yield from islice(line, 1)

    def take(self, work: Work) -> None:
        self.taken.append(work)
        if work in self.ends:
            self.ahead += 1 if work.kind == "F" else -1
        del self.lines[work.kind][work]
        del self.at_stage[work.kind, work.stage][work]

    def advance(self, turns: Turns) -> bool:
        """Take the next work in turn, as long as it is possible and next for all participants."""
        before = len(self.taken)
        while (work := self.next_in_turn()) is not None and turns.possible(work):
            if any(other.next_in_turn() != work for other in turns.takers(work)):
                break
            turns.take(work)
            turns.done.add(work)
        return len(self.taken) > before
