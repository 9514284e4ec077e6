"""Local steps (local SGD): schedules of logical workers that update by themselves, and the check of such schedules.

Each logical worker takes its own step after its own shards; after a number of steps they meet:

    two logical workers of one worker     F0 B0 F1 B1 LocalStep(0)  F2 B2 F3 B3 LocalStep(1)
    in a step in which they meet          ... Agree Average Publish

Between meetings a worker waits for nobody.
"""

from collections.abc import Iterator, Sequence

from samestep.errors import PlanRefused
from samestep.schedule.actions import Action, Agree, Average, Backward, Forward, Load, LocalStep, Publish, Schedule
from samestep.schedule.checker import action_place, deadlock, refuse_foreign_actions, refuse_missing, refuse_unmet_needs
from samestep.schedule.duties import duties
from samestep.schedule.grid import Grid
from samestep.schedule.places import places
from samestep.schedule.simulator import simulate

MEETING: Schedule = (Agree(), Average(), Publish())


def local_step_schedule(workers: range, shards: Sequence[range], *, meets: bool) -> Schedule:
    """One step of a worker that is the logical `workers`; `shards[i]` are those of logical worker i, perhaps none."""
    return (Load(), *_steps(workers, shards), *(MEETING if meets else ()))


def _steps(workers: range, shards: Sequence[range]) -> Iterator[Action]:
    for worker in workers:
        for shard in shards[worker]:
            yield Forward(shard)
            yield Backward(shard)
        yield LocalStep(worker)


def check_local_step(
    grid: Grid, schedules: Sequence[Schedule], workers: Sequence[range], shards: Sequence[range], *, meets: bool
) -> None:
    """Check a local step. Raises PlanRefused, naming worker and action, unless the schedules are correct.

    workers: the logical workers of each worker; shards: those of each logical worker.
    """
    where = places(grid)
    owed = [duties(where, rank) for rank in range(grid.num_workers)]
    for rank, schedule in enumerate(schedules):
        work = tuple(action for action in schedule if not isinstance(action, LocalStep | Agree | Average | Publish))
        refuse_foreign_actions(rank, work, where, owed)
        refuse_missing(rank, work, where, owed[rank])
        refuse_unmet_needs(rank, work, where)
        _refuse_other_steps(rank, schedule, workers[rank], shards)
        wanted = MEETING if meets else ()
        end = tuple(action for action in schedule if isinstance(action, Agree | Average | Publish))
        if end != wanted or schedule[len(schedule) - len(wanted) :] != wanted:
            raise PlanRefused(
                f"worker {rank} ends with {' '.join(map(str, end)) or 'nothing'}; this step ends with "
                f"{' '.join(map(str, wanted)) or 'nothing'}, on all workers: all meet or nobody"
            )
    outcome = simulate(grid, schedules, 1)
    if outcome.waits:
        raise PlanRefused(deadlock(grid, schedules, 1, outcome))


def _refuse_other_steps(rank: int, schedule: Schedule, workers: range, shards: Sequence[range]) -> None:
    """Refuse steps unless each logical worker steps once, after all its shards and before another's begin."""
    steps = [action.worker for action in schedule if isinstance(action, LocalStep)]
    if steps != list(workers):
        raise PlanRefused(
            f"worker {rank} takes the steps of the logical workers {steps}; it has {list(workers)}: each of them "
            "steps once, in this order"
        )
    owner = {shard: worker for worker in workers for shard in shards[worker]}
    stepped: set[int] = set()
    now: int | None = None
    for position, action in enumerate(schedule):
        if isinstance(action, LocalStep):
            stepped.add(action.worker)
            now = None
        elif isinstance(action, Forward | Backward):
            worker = owner[action.shard]
            if worker in stepped or now not in (None, worker):
                raise PlanRefused(
                    f"{action_place(rank, position, action)} is logical worker {worker}'s, and comes "
                    f"{'after its step' if worker in stepped else f'among those of logical worker {now}'}: a logical "
                    "worker's shards use its own weights, and come together before its step"
                )
            now = worker
