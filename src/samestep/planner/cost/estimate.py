"""Estimate of a plan's step: the schedules that will be run, simulated with measured costs, and the time explained.

    plan --segment--> segments --costs--> seconds of every action --simulate--> when everything happens
                                                                 --split--> compute, communication, bubble, ...

The simulated lists of actions are the executor's own. Costs are busy time; waiting comes out of the simulation.
Communication on one machine is busy time too: overlap hides waiting, never cycles.
"""

from dataclasses import dataclass
from typing import get_args

from samestep.numerics.numerics import num_shards_of
from samestep.plan.cluster import Cluster
from samestep.plan.plan import Plan
from samestep.plan.prediction import PARTS
from samestep.planner.cost.action_costs import ActionCosts
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.host_traffic import HostTraffic
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.cost.plan_segments import segment_plan
from samestep.schedule import actions
from samestep.schedule.actions import Action, Schedule
from samestep.schedule.grid import Grid
from samestep.schedule.simulator import ActionSpan, Cost, Simulation, no_cost, simulate
from samestep.sync.staleness import steps_stale

MOVING = (actions.Send, actions.Receive, actions.SendGradient, actions.ReceiveGradient, actions.Reduce)
KIND_OF_TIME: dict[type[Action], str] = {
    **dict.fromkeys(get_args(actions.ShardAction), "compute"),
    **dict.fromkeys(MOVING, "communication"),
    actions.Update: "update",
}
"""The one of prediction.PARTS that an action's busy time counts as; other actions count as overhead."""


@dataclass(frozen=True)
class Estimate:
    """The estimate of one plan; `parts` adds up to `seconds`."""

    plan: Plan
    seconds: float
    parts: dict[str, float]
    actions: tuple[dict[str, float], ...]  # per worker: busy seconds by the action's class
    outcome: Simulation
    schedules: tuple[Schedule, ...]
    grid: Grid
    wired: int  # bytes between hosts


def estimate(plan: Plan, chain: Chain, costs: MeasuredCosts, cluster: Cluster) -> Estimate:
    """Estimate a plan. Raises PlanRefused for a plan that cannot be run or that does not fit the chain."""
    segments = segment_plan(plan, chain)
    num_shards = num_shards_of(chain.batch_size, plan.numerics.shards)
    grid = plan.grid(num_shards, segments.sliced)
    clip, stale = costs.alone.clip > 0, steps_stale(plan)
    schedules = tuple(plan.schedule(grid, rank, clip=clip, stale=stale) for rank in range(plan.workers))
    busy = ActionCosts(segments, costs, cluster, num_shards)
    wires = HostTraffic(segments, cluster, num_shards, busy)

    def seconds(rank: int, action: Action) -> float:
        return busy.seconds(rank, action) + wires.exposed(action)

    outcome = steady_state(grid, schedules, stale, seconds, wires.transfer)
    late = 0.0
    if stale:
        late = last_stop(outcome) - last_stop(steady_state(grid, schedules, stale, seconds, no_cost))
    return split_into_parts(plan, grid, schedules, outcome, busy, wires, late)


def steady_state(grid: Grid, schedules: tuple[Schedule, ...], stale: int, cost: Cost, transfer: Cost) -> Simulation:
    """A step among many. With stale gradients: the last of as many as it takes until each is like the one before."""
    if not stale:
        return simulate(grid, schedules, cost=cost, transfer=transfer)
    steps = 2 * stale + 2
    found = simulate(grid, [schedule * steps for schedule in schedules], cost=cost, transfer=transfer)
    last = [spans[len(spans) - len(schedule) :] for spans, schedule in zip(found.spans, schedules, strict=True)]
    before = [spans[len(spans) - len(schedule) - 1] for spans, schedule in zip(found.spans, schedules, strict=True)]
    start = max(span.stop for span in before)
    spans = tuple(tuple(ActionSpan(span.start - start, span.stop - start) for span in own) for own in last)
    return Simulation(spans, found.waits, found.in_flight)


def split_into_parts(
    plan: Plan,
    grid: Grid,
    schedules: tuple[Schedule, ...],
    outcome: Simulation,
    busy: ActionCosts,
    wires: HostTraffic,
    late: float = 0.0,
) -> Estimate:
    """The parts of the step's time, as seen by the worker that the others wait for.

    late: seconds that the step waits for gradients posted in earlier steps.
    """
    by_class = [busy_by_class(schedule, rank, busy) for rank, schedule in enumerate(schedules)]
    bounding = max(range(plan.workers), key=lambda rank: sum(by_class[rank].values()))
    parts = dict.fromkeys(PARTS, 0.0)
    parts["communication"] += late
    for action in schedules[bounding]:
        waits = "resharding" if isinstance(action, actions.SliceForward | actions.SliceBackward) else "communication"
        parts[waits] += wires.exposed(action)
        parts[KIND_OF_TIME.get(type(action), "overhead")] += busy.seconds(bounding, action)
    end = last_stop(outcome)
    parts["bubble"] = max(0.0, end - sum(parts.values())) + busy.skew(bounding)
    parts["overhead"] += busy.table(bounding).gap
    return Estimate(plan, sum(parts.values()), parts, tuple(by_class), outcome, schedules, grid, wires.wired())


def last_stop(outcome: Simulation) -> float:
    return max(span.stop for spans in outcome.spans for span in spans)


def busy_by_class(schedule: Schedule, rank: int, busy: ActionCosts) -> dict[str, float]:
    found: dict[str, float] = {}
    for action in schedule:
        name = actions.class_name(type(action))
        found[name] = found.get(name, 0.0) + busy.seconds(rank, action)
    return found
