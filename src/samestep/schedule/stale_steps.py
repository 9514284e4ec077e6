"""Stale steps overlap: gradients that one step posts a later one awaits.

    stale(1)   step 0   F B Agree MergeBuffers                         Post(g0) Publish        no update yet
               step 1   F B Agree MergeBuffers Await(1): g0 Reduce     Post(g1) Update Publish
               step 2   F B Agree MergeBuffers Await(1): g1 Reduce     Post(g2) Update Publish
                          ^ on the parameters that g0 has changed and g1 has not

    sets of    step 0   writes 0          | a set is written again s + 1 steps later: by then its gradients
    slots      step 1   writes 1, uses 0  | are summed and used. So s + 1 sets are enough, and s are not:
               step 2   writes 0, uses 1  | g1 is still in flight while g2 is written

The check of a run of steps goes over each worker's own list; the simulation of the same lists shows that workers do
not wait in a circle.
"""

from collections.abc import Sequence

from samestep.errors import PlanRefused
from samestep.schedule.actions import Await, Backward, Lockstep, Post, Reduce, Schedule, Update
from samestep.schedule.grid import Grid
from samestep.schedule.simulator import simulate


def set_of(step: int, stale: int) -> int:
    """The set of slots that a step writes its gradients to."""
    return step % (stale + 1)


def check_overlapped(grid: Grid, steps: Sequence[Sequence[Schedule]], stale: int) -> None:
    """Raises PlanRefused, naming worker, step and action, unless the steps give every gradient to one update, `stale`
    steps later, in order, and overwrite none before. steps[t][rank] is a worker's schedule of step t."""
    for rank in range(grid.num_workers):
        _check_worker(rank, [step[rank] for step in steps], stale)
    joined = [tuple(action for step in steps for action in step[rank]) for rank in range(grid.num_workers)]
    outcome = simulate(grid, joined)
    if outcome.waits:
        rank, wait = next(iter(outcome.waits.items()))
        blockers = ", ".join(map(str, wait.blockers))
        raise PlanRefused(f"worker {rank} gets no further than {wait.action}: it waits for worker {blockers}")


def _check_worker(rank: int, steps: Sequence[Schedule], stale: int) -> None:
    in_flight: list[int] = []  # the steps whose gradients are posted and not yet awaited, oldest first
    for number, schedule in enumerate(steps):
        at = f"worker {rank}, step {number}"
        awaited: int | None = None
        for action in schedule:
            if isinstance(action, Backward | Lockstep):
                _refuse_overwriting(at, number, in_flight, stale)
            elif isinstance(action, Await):
                awaited = number - action.age
                if awaited not in in_flight:
                    raise PlanRefused(f"{at}: {action} awaits step {awaited}, which has no gradients in flight")
                if action.age > stale:
                    raise PlanRefused(f"{at}: {action} is older than the {stale} steps of the policy")
                if in_flight.pop(0) != awaited:
                    raise PlanRefused(f"{at}: {action} leaves older gradients behind: updates come in their order")
            elif isinstance(action, Reduce | Update) and awaited is None:
                raise PlanRefused(f"{at}: {action} comes before any gradient is awaited: begin with Await({stale})")
            elif isinstance(action, Post):
                in_flight.append(number)


def _refuse_overwriting(at: str, number: int, in_flight: Sequence[int], stale: int) -> None:
    for other in in_flight:
        if set_of(other, stale) == set_of(number, stale):
            raise PlanRefused(
                f"{at}: its gradients are written to set {set_of(number, stale)} of {stale + 1}, which still has those "
                f"of step {other}: await them first"
            )
