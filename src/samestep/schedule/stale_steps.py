"""Steps that overlap: with stale gradients, what one step posts a later one awaits.

    stale(1)   step 0   F B Agree MergeBuffers                         Post(g0) Publish        no update yet
               step 1   F B Agree MergeBuffers Await(1): g0 Reduce     Post(g1) Update Publish
               step 2   F B Agree MergeBuffers Await(1): g1 Reduce     Post(g2) Update Publish
                          ^ on the parameters that g0 has changed and g1 has not

    sets of    step 0   writes 0          | a set is written again s + 1 steps later: by then what was in it
    slots      step 1   writes 1, uses 0  | is summed and used. So s + 1 sets are enough, and s are not:
               step 2   writes 0, uses 1  | g1 is still under way while g2 is written

The proof that a run of steps is right goes over each worker's own list; that workers do not wait in a circle is the
simulation's to show, over the same lists.
"""

from collections.abc import Sequence

from samestep.errors import PlanRefused
from samestep.schedule.actions import Await, Backward, Lockstep, Post, Reduce, Schedule, Update
from samestep.schedule.grid import Grid
from samestep.schedule.simulator import simulate


def set_of(step: int, stale: int) -> int:
    """The set of slots that a step's gradients are written to."""
    return step % (stale + 1)


def check_overlapped(grid: Grid, steps: Sequence[Sequence[Schedule]], stale: int) -> None:
    """Raises PlanRefused, naming worker, step and action, unless the steps give every gradient to one update, `stale`
    steps later, in order, and none is written over before. steps[t][rank] is what a worker does in step t."""
    for rank in range(grid.num_workers):
        _check_worker(rank, [step[rank] for step in steps], stale)
    joined = [tuple(action for step in steps for action in step[rank]) for rank in range(grid.num_workers)]
    outcome = simulate(grid, joined)
    if outcome.waits:
        rank, wait = next(iter(outcome.waits.items()))
        blockers = ", ".join(map(str, wait.blockers))
        raise PlanRefused(f"worker {rank} comes no further than {wait.action}: it waits for worker {blockers}")


def _check_worker(rank: int, steps: Sequence[Schedule], stale: int) -> None:
    under_way: list[int] = []  # the steps whose gradients are posted and not yet awaited, oldest first
    for number, schedule in enumerate(steps):
        at = f"worker {rank}, step {number}"
        awaited: int | None = None
        for action in schedule:
            if isinstance(action, Backward | Lockstep):
                _refuse_overwriting(at, number, under_way, stale)
            elif isinstance(action, Await):
                awaited = number - action.age
                if awaited not in under_way:
                    raise PlanRefused(f"{at}: {action} is about step {awaited}, of which nothing is under way")
                if action.age > stale:
                    raise PlanRefused(f"{at}: {action} is older than the {stale} steps of the policy")
                if under_way.pop(0) != awaited:
                    raise PlanRefused(f"{at}: {action} leaves older gradients behind: updates come in their order")
            elif isinstance(action, Reduce | Update) and awaited is None:
                raise PlanRefused(f"{at}: {action} comes before any gradient is awaited: begin with Await({stale})")
            elif isinstance(action, Post):
                under_way.append(number)


def _refuse_overwriting(at: str, number: int, under_way: Sequence[int], stale: int) -> None:
    for other in under_way:
        if set_of(other, stale) == set_of(number, stale):
            raise PlanRefused(
                f"{at}: its gradients are written to set {set_of(number, stale)} of {stale + 1}, where those of step "
                f"{other} still lie: await them first"
            )
