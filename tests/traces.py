"""Made-up traces: what workers did, told by hand."""

from samestep.schedule.actions import Action
from samestep.trace.timesheet import Event
from samestep.trace.worker_trace import WorkerTrace

Did = tuple[Action, float, float]  # an action, its seconds, and those of them that it waited


def trace(rank: int, did: list[Did], *, host: int = 0, begin: float = 0.0, steps: int = 1) -> WorkerTrace:
    """The same step, so many times, one action right after the other."""
    events, at = [], begin
    for step in range(steps):
        for action, seconds, waited in did:
            events.append(Event(step, action, at, at + seconds, waited))
            at += seconds
    return WorkerTrace(rank, host, tuple(events))
