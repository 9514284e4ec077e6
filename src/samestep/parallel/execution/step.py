"""A training step, top to bottom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from samestep.errors import PeerLost
from samestep.parallel.execution.executor import Executor, StepState
from samestep.schedule import actions
from samestep.trace.timesheet import Timesheet


@dataclass(frozen=True)
class StepResult:
    """Result of a step, equal on every worker.

    loss: NaN where logical workers take local steps and do not meet in this one; `known` has it after they have met.
    """

    number: int
    loss: float
    stop: bool  # whether some worker was asked to stop after this step
    present: bytes  # per entry of the layout: whether some shard had a gradient for it
    seconds: tuple[float, ...] = ()  # that each worker computed for its shards
    known: Sequence[tuple[int, float]] = ()  # the losses that became known in this step: number and loss of each


def run_step(
    executor: Executor,
    number: int,
    rows: int,
    stop_asked: bool = False,
    before: Sequence[Callable[[actions.Action], None]] = (),
    after: Sequence[Callable[[actions.Action, StepState], None]] = (),
) -> StepResult:
    """One optimizer step over a batch of `rows` rows. All workers must call it with the same numbers.

    before, after: called around every action.
    """
    timesheet = executor.transport.timesheet
    shard_sizes, schedule = executor.step_schedule(rows, number)
    state = StepState(number, list(shard_sizes), rows, stop_asked=stop_asked)
    timesheet.start()
    for action in schedule:
        timesheet.whereabouts.enter(action)
        for attend in before:
            attend(action)
        try:
            perform(executor, action, state)
        except PeerLost as lost:
            lost.during = lost.during or str(action)
            raise
        book(timesheet, number, action)
        for look in after:
            look(action, state)
    loss = dict(state.known).get(number, state.loss)
    return StepResult(number, loss, state.stop, state.present, tuple(state.seconds), state.known)


def perform(executor: Executor, action: actions.Action, state: StepState) -> None:
    """Send the action to the method that does it."""
    method: Callable[[actions.Action, StepState], None] = getattr(executor, METHODS[type(action)])
    method(action, state)


METHODS = {
    actions.Load: "load",
    actions.Forward: "forward",
    actions.Recompute: "recompute",
    actions.Backward: "backward",
    actions.BackwardWeight: "backward_weight",
    actions.SliceForward: "slice_forward",
    actions.SliceBackward: "slice_backward",
    actions.Send: "send",
    actions.Receive: "receive",
    actions.SendGradient: "send_gradient",
    actions.ReceiveGradient: "receive_gradient",
    actions.Lockstep: "lockstep",
    actions.Agree: "agree",
    actions.Reduce: "reduce",
    actions.MergeBuffers: "merge_buffers",
    actions.Clip: "clip",
    actions.Update: "step",
    actions.Publish: "publish",
    actions.Post: "post",
    actions.Await: "wait_for",
    actions.LocalStep: "local_step",
    actions.Average: "average",
}


def book(timesheet: Timesheet, step: int, action: actions.Action) -> None:
    if isinstance(action, actions.COMMUNICATION):
        timesheet.communicated(step, action)
    else:
        timesheet.computed(step, action)
