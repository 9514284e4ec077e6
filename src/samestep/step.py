"""A training step, top to bottom."""

from collections.abc import Callable
from dataclasses import dataclass

from samestep.numerics import num_shards_of, shard_rows
from samestep.parallel.executor import Executor, StepState
from samestep.schedule import actions
from samestep.schedule.orders import data_parallel
from samestep.trace.timesheet import Timesheet


@dataclass(frozen=True)
class StepResult:
    """What every worker knows after a step."""

    number: int
    loss: float
    stop: bool  # whether some worker was asked to stop after this step
    present: bytes  # per entry of the layout: whether some shard had a gradient for it


def run_step(executor: Executor, number: int, rows: int, stop_asked: bool = False) -> StepResult:
    """One optimizer step over a batch of `rows` rows. All workers must call it with the same numbers."""
    plan, timesheet = executor.plan, executor.transport.timesheet
    num_shards = num_shards_of(rows, plan.numerics.shards)
    state = StepState(number, [len(part) for part in shard_rows(rows, num_shards)], stop_asked)
    schedule = data_parallel(
        plan.shards_of(executor.transport.rank, num_shards),
        lockstep=plan.numerics.sync_batchnorm,
        clip=executor.clip_grad_norm is not None,
    )
    timesheet.start()
    for action in schedule:
        perform(executor, action, state)
        book(timesheet, action)
    return StepResult(number, state.loss, state.stop, state.present)


def perform(executor: Executor, action: actions.Action, state: StepState) -> None:
    """Send the action to the method that does it."""
    method: Callable[[actions.Action, StepState], None] = getattr(executor, METHODS[type(action)])
    method(action, state)


METHODS = {
    actions.Load: "load",
    actions.Forward: "forward",
    actions.Backward: "backward",
    actions.Lockstep: "lockstep",
    actions.Agree: "agree",
    actions.Reduce: "reduce",
    actions.MergeBuffers: "merge_buffers",
    actions.Clip: "clip",
    actions.Update: "step",
    actions.Publish: "publish",
}

COMMUNICATION = (actions.Agree, actions.Reduce, actions.Publish)


def book(timesheet: Timesheet, action: actions.Action) -> None:
    if isinstance(action, COMMUNICATION):
        timesheet.communicated()
    else:
        timesheet.computed()
