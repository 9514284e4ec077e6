"""A list scheduler: orders of all workers, from the durations of their work and the sets that each may keep.

Time is simulated (`race.py`): a free worker takes the possible work that a rule ranks first; a forward only where
there is room for one more set. Four sets, three at most on a worker, stages that take 1, 3, 1 forward
and 1, 3, 4 backward: 28 units of time, where 1f1b takes 30.

    worker 0   F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3
    worker 1   F1.0 F1.1 F1.2 B1.0 F1.3 B1.1 B1.2 B1.3
    worker 2   F2.0 B2.0 F2.1 F2.2 B2.1 B2.2 F2.3 B2.3

No rule is best everywhere, and any can lose to a fixed order (R. L. Graham, Bounds on Multiprocessing Timing
Anomalies, 1969). So all of `RULES` are tried, and those classical orders that keep no more than allowed; the first
of those that end soonest is taken. The result is a written order: a plan carries it as `order = [...]`, and running it
needs neither durations nor this file.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, product
from math import inf, isfinite

from samestep.errors import PlanRefused
from samestep.schedule.grid import Grid
from samestep.schedule.orders.pipeline import one_f_one_b, zero_bubble
from samestep.schedule.orders.race import Race, Racer, WorkTimes, held_after, queues_of
from samestep.schedule.orders.work import Kind, Work, Works
from samestep.schedule.places import Places, places

Tails = dict[tuple[Kind, int], float]  # by kind and stage
Rule = Callable[[Work, Tails], tuple[float, ...]]


def greedy_order(
    grid: Grid, paces: Sequence[WorkTimes], latency: float = 0.0, caps: Sequence[int] | None = None
) -> tuple[Works, ...]:
    """Orders of all workers; the same for the same arguments.

    paces: work times of every stage. latency: of a message between workers, in the same unit. caps: for each worker the
    most sets that it may keep between forward and the last part of backward, a set at two stages counted twice;
    None: any number. Where groups of workers overlap, a cap may be exceeded to let the step continue.
    Raises PlanRefused for arguments that do not fit one another.
    """
    refuse_bad_arguments(grid, paces, latency, caps)
    where = places(grid)
    limits = [inf] * grid.num_workers if caps is None else list(caps)
    races = [race_by_rule(where, paces, latency, limits, rule) for rule in RULES]
    races += [race_given_order(where, paces, latency, lines) for lines in classical_orders(where, limits)]
    best = min(races, key=lambda race: race.end)
    return tuple(tuple(racer.taken) for racer in best.racers)


def race_by_rule(
    where: Places, paces: Sequence[WorkTimes], latency: float, limits: Sequence[float], rule: Rule
) -> Race:
    """A race in which workers choose by one rule."""
    tails = tails_of(paces, latency)
    racers = [Racer(where, rank, queues_of(where, rank), limit) for rank, limit in enumerate(limits)]
    return Race(where, paces, latency, racers, lambda work: rule(work, tails)).run()


def race_given_order(where: Places, paces: Sequence[WorkTimes], latency: float, lines: Sequence[Works]) -> Race:
    """A race in which every worker follows a given order."""
    racers = [Racer(where, rank, [line], inf) for rank, line in enumerate(lines)]
    return Race(where, paces, latency, racers, lambda work: ()).run()


def classical_orders(where: Places, limits: Sequence[float]) -> Iterator[tuple[Works, ...]]:
    """1f1b and zero-bubble, of every depth within the limits."""
    seen = set()
    for order, depth in product((one_f_one_b, zero_bubble), DEPTHS):
        lines = tuple(tuple(order(where.grid, rank, depth)) for rank in range(where.grid.num_workers))
        fits = all(most_held(where, rank, line) <= limits[rank] for rank, line in enumerate(lines))
        if fits and lines not in seen:
            seen.add(lines)
            yield lines


def most_held(where: Places, rank: int, line: Works) -> int:
    """The most sets, times stages, that a worker's list keeps at once."""
    return max(accumulate(held_after(where, rank, work) for work in line), default=0)


# Rules: the work with the least value goes first. Gradients of weights are last in each: no worker waits for them.
# A worker that has no room for a forward makes them.


def longest_first(work: Work, tails: Tails) -> tuple[float, ...]:
    """Work with the longest remaining path first: forwards, as long as there is room."""
    return work.kind == "W", -tails[work.kind, work.stage], work.set_index


def backward_first(work: Work, tails: Tails) -> tuple[float, ...]:
    """Backwards first, as they make room; of each kind the longest remaining path."""
    return "BFW".index(work.kind), -tails[work.kind, work.stage], work.set_index


def furthest_first(work: Work, tails: Tails) -> tuple[float, ...]:
    """Backwards first; then forwards of late stages, so that a set soon starts its backwards."""
    return "BFW".index(work.kind), -work.stage, work.set_index


DEPTHS = range(1, 5)  # enough for messages that take as long as a forward and a backward
RULES: tuple[Rule, ...] = (longest_first, backward_first, furthest_first)


def tails_of(paces: Sequence[WorkTimes], latency: float) -> Tails:
    """Remaining path: the time from the beginning of a set's work at a stage to the end of its last backward."""
    back = list(accumulate(pace.backward + latency for pace in paces))
    ahead = list(accumulate(pace.forward + latency for pace in reversed(paces)))[::-1]
    found: Tails = {}
    for stage, pace in enumerate(paces):
        found["F", stage], found["B", stage], found["W", stage] = ahead[stage] + back[-1], back[stage], pace.weight
    return found


def refuse_bad_arguments(grid: Grid, paces: Sequence[WorkTimes], latency: float, caps: Sequence[int] | None) -> None:
    if len(paces) != len(grid.stages):
        raise PlanRefused(f"{len(paces)} paces for {len(grid.stages)} stages: give every stage one")
    durations = [latency, *(time for pace in paces for time in (pace.forward, pace.backward, pace.weight))]
    if not all(isfinite(duration) and duration >= 0 for duration in durations):
        raise PlanRefused(f"latency {latency}, paces {list(paces)}: durations are finite, and 0 or more")
    if caps is not None and len(caps) != grid.num_workers:
        raise PlanRefused(f"{len(caps)} caps for {grid.num_workers} workers: give every worker one")
    for rank, cap in enumerate(caps or ()):
        stages = sum(rank in stage.workers for stage in grid.stages)
        if cap < stages:
            raise PlanRefused(
                f"worker {rank} may keep {cap} sets and has {stages} stages, at each of which a set is kept until its "
                f"backward: allow {stages} at least"
            )
