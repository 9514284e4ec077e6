"""Orders of a pipeline: the order in which each worker takes sets of shards through its stages.

A worker does a number of forwards, its warm-up, then one forward and one backward in turn (`turns.py`). It works in
rounds: a round of sets through one chunk of its stages, then through its next chunk; for backwards the chunks are
reversed. Each order is a choice of two numbers:

                  round                             warm-up
    gpipe         all sets                          all forwards
    1f1b          one set                           until the first set is in the worker's last chunk, and
                                                    d more for every chunk that follows
    interleaved   one set per group of workers,     the same with 2 d
                  or slightly more

    zero-bubble   1f1b, with gradients of weights deferred by as many sets as the worker keeps fewer than the first

Sets are in increasing order for each worker and stage, forwards and backwards: gradients are added in shard
order.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import accumulate

from samestep.errors import PlanRefused
from samestep.schedule.grid import Grid
from samestep.schedule.orders.turns import line_up, with_weights
from samestep.schedule.orders.work import Work, Works, chunks_held, stage_chunks
from samestep.schedule.places import places


def gpipe(grid: Grid, rank: int, depth: int = 1) -> Iterator[Work]:
    """All forwards, then all backwards. Four sets on four workers; time goes to the right, a backward takes two:

    worker 0   F0 F1 F2 F3 .  .  .  .  .  .  .  .  .  B0 B0 B1 B1 B2 B2 B3 B3
    worker 1   .  F0 F1 F2 F3 .  .  .  .  .  .  B0 B0 B1 B1 B2 B2 B3 B3 .  .
    worker 2   .  .  F0 F1 F2 F3 .  .  .  B0 B0 B1 B1 B2 B2 B3 B3 .  .  .  .
    worker 3   .  .  .  F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3 .  .  .  .  .  .

    It ignores `depth`.
    """
    yield from line_up(grid, (len(places(grid).sets),), None)[rank]


def one_f_one_b(grid: Grid, rank: int, depth: int = 1) -> Iterator[Work]:
    """A backward as soon as one is possible: the same time as gpipe, and at most p-r sets are kept.

    worker 0   F0 F1 F2 F3 .  .  .  .  .  .  B0 B0 .  B1 B1 .  B2 B2 .  B3 B3
    worker 1   .  F0 F1 F2 .  .  .  .  B0 B0 F3 B1 B1 .  B2 B2 .  B3 B3 .  .
    worker 2   .  .  F0 F1 .  .  B0 B0 F2 B1 B1 F3 B2 B2 .  B3 B3 .  .  .  .
    worker 3   .  .  .  F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3 .  .  .  .  .  .

    On slow links a set's way down and up takes longer than p-r turns: `depth` d keeps d times as many sets
    in flight. With latency c, d = 1 + ceil(2c / (F+B)) is enough.
    """
    yield from line_up(grid, (1,) * len(places(grid).sets), depth)[rank]


def interleaved(grid: Grid, rank: int, depth: int = 1) -> Iterator[Work]:
    """Several stages per worker: v of them divide the time of filling and draining by v. Stages 0, 2 are on worker 0,
    1 and 3 on worker 1; two rounds of two sets; a cell is stage.set:

    worker 0   F0.0 F0.1 F2.0 F2.1 F0.2 .    B2.0 B2.0 F0.3 B2.1 B2.1 F2.2 B0.0 B0.0 F2.3 B0.1 B0.1 .    ...
    worker 1   .    F1.0 F1.1 F3.0 B3.0 B3.0 F3.1 B3.1 B3.1 F1.2 B1.0 B1.0 F1.3 B1.1 B1.1 F3.2 B3.2 B3.2 ...

    With one chunk per worker it is 1f1b.
    """
    if all(chunks_held(grid, worker) <= 1 for worker in range(grid.num_workers)):
        yield from one_f_one_b(grid, rank, depth)
    else:
        groups = {grid.stages[chunk.start].workers for chunk in stage_chunks(grid)}
        yield from line_up(grid, equal_rounds(len(places(grid).sets), len(groups)), 2 * depth)[rank]


def zero_bubble(grid: Grid, rank: int, depth: int = 1) -> Iterator[Work]:
    """Backward in two parts, where stages split it: the weights' gradients (W) fill what 1f1b leaves idle.

    worker 0   F0 F1 F2 F3 .  .  .  B0 W0 B1 W1 B2 W2 B3 W3
    worker 1   .  F0 F1 F2 .  .  B0 F3 B1 W0 B2 W1 B3 W2 W3
    worker 2   .  .  F0 F1 .  B0 F2 B1 F3 B2 W0 B3 W1 W2 W3
    worker 3   .  .  .  F0 B0 F1 B1 F2 B2 F3 B3 W0 W1 W2 W3

    The bubble shrinks from (p-1)(F+B+W) to (p-1)(F+B-W), and no worker keeps more than the first one in 1f1b,
    p sets: worker r's W is r sets behind its B (ZB-H1 of Qi et al., Zero Bubble Pipeline Parallelism, 2024).
    """
    lines, most = unsplit_lines(grid, depth)
    yield from with_weights(places(grid), rank, lines[rank], max(most) - most[rank])


@cache
def unsplit_lines(grid: Grid, depth: int) -> tuple[tuple[Works, ...], tuple[int, ...]]:
    """1f1b's lists of whole backwards, and the most sets that each of them keeps."""
    lines = line_up(unsplit(grid), (1,) * len(places(grid).sets), depth)
    return lines, tuple(map(most_kept, lines))


ORDERS: dict[str, Callable[[Grid, int, int], Iterator[Work]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero-bubble": zero_bubble,
}
"""Orders by the names that plans use."""


def order_named(name: str) -> Callable[[Grid, int, int], Iterator[Work]]:
    if name not in ORDERS:
        raise PlanRefused(f"unknown order {name!r} (known: {', '.join(ORDERS)}, or one line of work per worker)")
    return ORDERS[name]


def equal_rounds(count: int, least: int) -> tuple[int, ...]:
    """Sizes of as many rounds of at least `least` sets as `count` sets allow, the larger ones first."""
    rounds = max(1, count // least)
    return tuple(count // rounds + (i < count % rounds) for i in range(rounds))


def unsplit(grid: Grid) -> Grid:
    """The grid with whole backwards."""
    return replace(grid, stages=tuple(replace(stage, split=False) for stage in grid.stages))


def most_kept(works: Iterable[Work]) -> int:
    """The most sets that are between forward and backward at once, in a worker's list of whole backwards."""
    return max(accumulate(1 if work.kind == "F" else -1 for work in works), default=0)
