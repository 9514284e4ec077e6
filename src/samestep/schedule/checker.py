"""The checker: proves that the schedules of all workers make a correct step, or names the fault and its place.

    1. every worker does its duties once, and nothing else                           `duties.duties`
    2. every action comes after those it needs; gradients are added in shard order   `duties.needs`
    3. all forwards and backwards use the same weights: the step's end comes last, on all workers alike
    4. with bounded channels no worker waits for ever: else the circle of waits is named    `simulate`

From 1 and 4 follows that every message is sent and received once; from 2, that it has what the peer needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from samestep.errors import PlanRefused
from samestep.schedule import actions
from samestep.schedule.actions import Action, Schedule
from samestep.schedule.duties import duties, needs
from samestep.schedule.grid import Grid
from samestep.schedule.passes import tail
from samestep.schedule.places import Places, places
from samestep.schedule.simulator import MEETINGS, TAIL, BlockedWorker, Simulation, simulate


@dataclass(frozen=True)
class Peak:
    """The most kept at once, in shards times segments; a sliced segment keeps its whole set.

    A segment with deferred gradients of weights is kept until these are made. In a stage that recomputes,
    `activations` counts those being recomputed and `inputs` the inputs that recomputing starts from.
    """

    activations: int = 0
    inputs: int = 0


@dataclass(frozen=True)
class StepPeaks:
    """Peaks of a step, as the checker measured them."""

    peaks: tuple[Peak, ...]  # per worker
    stage_peaks: Mapping[tuple[int, int], Peak]  # per worker and stage
    in_flight: Mapping[tuple[int, int], int]  # per channel (from, to): the most messages not yet received, as simulated


def check(grid: Grid, schedules: Sequence[Schedule], capacity: int) -> StepPeaks:
    """Check a step. Raises PlanRefused, naming worker, position and action, unless the schedules are correct.

    `capacity` is the number of messages that a worker can send to another one ahead of its receives.
    """
    where = places(grid)
    if len(schedules) != grid.num_workers:
        raise PlanRefused(f"{len(schedules)} schedules for {grid.num_workers} workers: each worker needs one")
    owed = [duties(where, rank) for rank in range(grid.num_workers)]
    for rank, schedule in enumerate(schedules):
        refuse_foreign_actions(rank, schedule, where, owed)
        refuse_work_after_end(rank, schedule)
        refuse_missing(rank, schedule, where, owed[rank])
        refuse_unmet_needs(rank, schedule, where)
        refuse_other_end(rank, schedule, schedules[0])
    outcome = simulate(grid, schedules, capacity)
    if outcome.waits:
        raise PlanRefused(deadlock(grid, schedules, capacity, outcome))
    stage_peaks = {
        (rank, stage): peak_of(where, schedules[rank], [stage])
        for stage, here in enumerate(grid.stages)
        for rank in here.workers
    }
    everywhere = range(len(grid.stages))
    return StepPeaks(tuple(peak_of(where, list_, everywhere) for list_ in schedules), stage_peaks, outcome.in_flight)


def least_capacity(grid: Grid, schedules: Sequence[Schedule]) -> int | None:
    """The least capacity with which the schedules do not deadlock; None if they always do."""
    free = simulate(grid, schedules)
    if free.waits:
        return None
    low, high = 1, max(free.in_flight.values(), default=1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if simulate(grid, schedules, middle).waits else (low, middle)
    return low


def refuse_foreign_actions(rank: int, schedule: Schedule, where: Places, owed: Sequence[Mapping[Action, None]]) -> None:
    """Refuse actions that are not this worker's, and actions that come twice."""
    first: dict[Action, int] = {}
    for position, action in single_actions(schedule, where):
        if action in first:
            raise PlanRefused(
                f"{action_place(rank, position, action)} comes twice, first as action {first[action]}: remove one"
            )
        first[action] = position
        if action not in owed[rank] and not isinstance(action, TAIL):
            raise PlanRefused(
                f"{action_place(rank, position, action)} is not worker {rank}'s: {correction(rank, action, owed)}"
            )


def correction(rank: int, action: Action, owed: Sequence[Mapping[Action, None]]) -> str:
    """The correction of an action that is not this worker's, in words."""
    others = [other for other, theirs in enumerate(owed) if action in theirs]
    if others:
        return f"it is worker {', '.join(map(str, others))}'s; move it there"
    if isinstance(action, actions.CutMessage):
        for mine in owed[rank]:
            if isinstance(mine, type(action)) and (mine.shard, mine.stage) == (action.shard, action.stage):
                return f"its peer is worker {mine.peer}; write {mine}"
    return "the plan has no such action for anybody; remove it"


def refuse_work_after_end(rank: int, schedule: Schedule) -> None:
    """Refuse work after the first action of the step's end."""
    ends = [position for position, action in enumerate(schedule) if isinstance(action, TAIL)]
    late = [position for position, action in enumerate(schedule) if not isinstance(action, TAIL)]
    if not ends or not late or ends[0] > late[-1]:
        return
    last = action_place(rank, late[-1], schedule[late[-1]])
    updates = [position for position in ends if isinstance(schedule[position], actions.Update)]
    if updates and updates[0] < late[-1]:
        raise PlanRefused(
            f"{action_place(rank, updates[0], actions.Update())} comes before {last}: a shard's forward and backward "
            "must use the same weights; move the update behind all of them"
        )
    raise PlanRefused(
        f"{action_place(rank, ends[0], schedule[ends[0]])} comes before {last}: gradients are complete "
        "only after every backward; move it behind"
    )


def refuse_missing(rank: int, schedule: Schedule, where: Places, owed: Mapping[Action, None]) -> None:
    there = {action for _, action in single_actions(schedule, where)}
    for action in owed:
        if action not in there:
            raise PlanRefused(f"worker {rank} never does {action}: {purpose(action)}; add it to its list")


def purpose(action: Action) -> str:
    if isinstance(action, actions.Send | actions.SendGradient):
        return f"worker {action.peer} would wait for it"
    if isinstance(action, actions.Recompute):
        return "its stage keeps no activations, so the backward has nothing to start from"
    if isinstance(action, actions.BackwardWeight):
        return "its backward leaves gradients of weights for later, and the update would lack them"
    if hasattr(action, "peer"):
        return f"worker {action.peer} sends it, and nobody would take it"
    return "every shard goes once forward and once backward through every segment"


def refuse_unmet_needs(rank: int, schedule: Schedule, where: Places) -> None:
    """Refuse actions that come before one they need, and backwards that are not in shard order."""
    position_of = {action: position for position, action in single_actions(schedule, where)}
    order = {action: number for number, (_, action) in enumerate(single_actions(schedule, where))}
    last: dict[tuple[type, int], tuple[int, Action]] = {}  # per kind and segment: the last backward
    for position, action in single_actions(schedule, where):
        for needed in needs(where, rank, action):
            if order[needed] > order[action]:
                raise PlanRefused(
                    f"{action_place(rank, position, action)} comes before {needed}, action {position_of[needed]}, "
                    "which it needs: exchange them"
                )
        if isinstance(action, actions.Backward | actions.BackwardWeight | actions.SliceBackward):
            number = action.shards.start if isinstance(action, actions.SliceBackward) else action.shard
            before, other = last.get((type(action), action.segment), (-1, action))
            if before > number:
                raise PlanRefused(
                    f"{action_place(rank, position, action)} comes after {other}: gradients are added in shard order, "
                    "so the lower shards go backward first; exchange them"
                )
            last[type(action), action.segment] = number, action


def expected_end(first: Schedule) -> Schedule:
    """The end of a step that clips, and uses gradients of the age, as worker 0's schedule `first` does."""
    age = next((action.age for action in first if isinstance(action, actions.Await)), 0)
    filling = actions.Post() in first and not age
    return tuple(tail(actions.Clip() in first, age or int(filling), filling=filling))


def refuse_other_end(rank: int, schedule: Schedule, first: Schedule) -> None:
    """Refuse an end that differs from worker 0's."""
    end, wanted = tuple(action for action in schedule if isinstance(action, TAIL)), expected_end(first)
    if end == wanted:
        return
    if actions.Clip() in end and actions.Clip() not in first:
        place = action_place(rank, schedule.index(actions.Clip()), actions.Clip())
        raise PlanRefused(f"{place}: worker 0 has none; all clip or nobody")
    raise PlanRefused(
        f"worker {rank} ends with {' '.join(map(str, end)) or 'nothing'}; "
        f"every step ends with {' '.join(map(str, wanted))}, on all workers"
    )


def deadlock(grid: Grid, schedules: Sequence[Schedule], capacity: int, outcome: Simulation) -> str:
    """The circle of workers that wait for one another, and the way out."""
    waits = outcome.waits
    circle = " ".join(
        f"{action_place(rank, wait.position, wait.action)} waits for worker {blocker}{wait_reason(wait, capacity)};"
        for wait, rank, blocker in ((waits[rank], rank, blocker) for rank, blocker in circle_of(waits))
    )
    enough = least_capacity(grid, schedules)
    if enough is None:
        return f"the schedules deadlock: {circle} change the order of one of these actions"
    return (
        f"the schedules deadlock with a channel capacity of {capacity}: {circle} "
        f"a capacity of {enough} is enough, or change the order of one of these actions"
    )


def wait_reason(wait: BlockedWorker, capacity: int) -> str:
    if isinstance(wait.action, actions.Send | actions.SendGradient):
        return f" to take a message ({capacity} untaken)"
    if isinstance(wait.action, MEETINGS):
        return " to join it"
    if isinstance(wait.action, actions.Await):
        return " to post it"
    return " to send it"


def circle_of(waits: Mapping[int, BlockedWorker]) -> list[tuple[int, int]]:
    """A circle of pairs (worker, the one it waits for).

    Every waiting worker waits for a waiting one: a worker that has finished its list has done all its sends,
    receives and meetings.
    """
    seen: list[int] = []
    rank = min(waits)
    while rank not in seen:
        seen.append(rank)
        rank = waits[rank].blockers[0]
    circle = seen[seen.index(rank) :]
    return list(zip(circle, [*circle[1:], circle[0]], strict=True))


def peak_of(where: Places, schedule: Schedule, stages: Sequence[int]) -> Peak:
    """The most that a worker keeps of some stages."""
    kept, inputs, most, most_inputs = 0, 0, 0, 0
    for _, action in single_actions(schedule, where):
        segment: int = getattr(action, "segment", -1)
        if segment < 0 or where.stage_of[segment] not in stages:
            continue
        here = where.grid.stages[where.stage_of[segment]]
        redo = here.recompute
        if isinstance(action, actions.SliceForward | actions.SliceBackward):
            kept += len(action.shards) if isinstance(action, actions.SliceForward) else -len(action.shards)
        elif isinstance(action, actions.Forward):
            kept, inputs = (kept, inputs + 1) if redo else (kept + 1, inputs)
        elif isinstance(action, actions.Recompute):
            kept += 1
        elif isinstance(action, actions.Backward):
            kept, inputs = kept - (not here.split), inputs - redo
        elif isinstance(action, actions.BackwardWeight):
            kept -= 1
        most, most_inputs = max(most, kept), max(most_inputs, inputs)
    return Peak(most, most_inputs)


def single_actions(schedule: Schedule, where: Places) -> Iterator[tuple[int, Action]]:
    """Actions with their positions; a Lockstep is unrolled into forwards and backwards."""
    for position, action in enumerate(schedule):
        if not isinstance(action, actions.Lockstep):
            yield position, action
            continue
        segments = range(len(where.sliced))
        for shard in action.shards:
            yield from ((position, actions.Forward(shard, segment)) for segment in segments)
            yield from ((position, actions.Backward(shard, segment)) for segment in reversed(segments))


def action_place(rank: int, position: int, action: Action) -> str:
    return f"worker {rank}, action {position}, {action}"
