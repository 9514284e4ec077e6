"""Waits between workers, from the traces of all workers on one clock.

    a meeting     worker 0   |....wait....|==      worker 0 waits for the last to come, until it comes;
                  worker 1   ......|======|==      after that, for the one who waits least in the meeting
    a message     worker 0        Send |==|        the receiver waits for the sender until it begins to send,
                  worker 1   |..wait...|..|=       then for bytes that are under way

Time that all of a meeting wait, and all other waiting, is for bytes under way too: no worker causes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from samestep.schedule.actions import Lockstep, Receive, ReceiveGradient, Send, SendGradient, class_name
from samestep.schedule.simulator import MEETINGS
from samestep.trace.timesheet import Event
from samestep.trace.worker_trace import WorkerTrace, message_of

Member = tuple[int, Event]


@dataclass(frozen=True)
class Wait:
    """Seconds that `rank` waited in an action of `kind`. cause: the worker it waited for; None: bytes under way."""

    step: int
    rank: int
    cause: int | None
    kind: str
    seconds: float


def waits_of(traces: Sequence[WorkerTrace]) -> list[Wait]:
    """All waits, each second counted once."""
    return [wait for wait in all_waits(traces) if wait.seconds > 0]


def all_waits(traces: Sequence[WorkerTrace]) -> Iterator[Wait]:
    members = [(trace.rank, event) for trace in traces for event in trace.events]
    sent = {message_of(*member): member[1] for member in members if isinstance(member[1].action, Send | SendGradient)}
    meetings: dict[object, list[Member]] = {}
    for rank, event in members:
        action = event.action
        if isinstance(action, (*MEETINGS, Lockstep)):
            name = Lockstep if isinstance(action, Lockstep) else action  # in lockstep each worker has its own shards
            meetings.setdefault((event.step, name), []).append((rank, event))
        elif isinstance(action, Receive | ReceiveGradient):
            yield from for_message(rank, event, sent.get(message_of(rank, event)))
        else:  # a sender whose mailbox is full waits until its peer takes something
            yield wait_in(rank, event, getattr(action, "peer", None), event.waited)
    for meeting in meetings.values():
        yield from for_meeting(meeting)


def for_message(rank: int, event: Event, sending: Event | None) -> Iterator[Wait]:
    """Waits of a receiver. sending: the sender's event, if it is known."""
    late = event.waited if sending is None else clipped(sending.start - event.start, event.waited)
    yield wait_in(rank, event, event.action.peer, late)
    yield wait_in(rank, event, None, event.waited - late)


def for_meeting(members: Sequence[Member]) -> Iterator[Wait]:
    """Waits of all members of a meeting."""
    last, latest = max(members, key=lambda member: member[1].start)
    late = {rank: clipped(latest.start - event.start, event.waited) for rank, event in members}
    inside = {rank: event.waited - late[rank] for rank, event in members}
    slowest = min(inside, key=inside.__getitem__)
    for rank, event in members:
        yield wait_in(rank, event, last, late[rank])
        yield wait_in(rank, event, slowest, inside[rank] - inside[slowest])
        yield wait_in(rank, event, None, inside[slowest])


def clipped(seconds: float, most: float) -> float:
    return min(max(seconds, 0.0), most)


def wait_in(rank: int, event: Event, cause: int | None, seconds: float) -> Wait:
    return Wait(event.step, rank, cause, class_name(type(event.action)), seconds)
