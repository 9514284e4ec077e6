"""Traces in the trace-event format of Chrome, which ui.perfetto.dev and chrome://tracing open.

    process   a host                     slice "F0 seg 2", "Reduce", ...     category compute or communicate
    thread    a worker                   slice "wait" before it              category wait
    arrow     from a Send to its Receive

How long an action waited is known, not when; the wait is drawn at its beginning. The format: "Trace Event Format"
(Google, 2016), its JSON object form, events M (metadata), X (complete), s and f (flow), i (instant).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from samestep.schedule.actions import Receive, ReceiveGradient, Send, SendGradient
from samestep.trace.action_names import category_of, name_of
from samestep.trace.timesheet import Event
from samestep.trace.worker_trace import Message, WorkerTrace, fields_of, message_of

Slice = dict[str, Any]

COLOURS = {"wait": "grey", "communicate": "thread_state_iowait"}  # of Chrome's own names


def chrome_trace(traces: Sequence[WorkerTrace]) -> dict[str, Any]:
    """The whole file, as values of JSON. Times are microseconds since the first event."""
    origin = min((event.start for trace in traces for event in trace.events), default=0.0)
    error = max((trace.clock_error for trace in traces), default=0.0)
    events = [
        *names_of(traces),
        *(part for trace in traces for event in trace.events for part in slices_of(trace, event, origin)),
        *arrows_of(traces, origin),
        *marks_of(traces, origin),
    ]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"program": "samestep", "clock error, seconds": error},
    }


def names_of(traces: Sequence[WorkerTrace]) -> Iterator[Slice]:
    for host in sorted({trace.host for trace in traces}):
        yield {"ph": "M", "name": "process_name", "pid": host, "args": {"name": f"host {host}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": host, "args": {"sort_index": host}}
    for trace in traces:
        place = {"pid": trace.host, "tid": trace.rank}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": f"worker {trace.rank}"}}
        yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": trace.rank}}


def slices_of(trace: WorkerTrace, event: Event, origin: float) -> Iterator[Slice]:
    """The spans of an event: waiting, then working; those without length are left out."""
    start, busy, stop = times_of(event, origin)
    name, place = name_of(event.action), {"pid": trace.host, "tid": trace.rank}
    said = {"step": event.step, **fields_of(event.action)}
    if busy > start:
        waiting = {"name": "wait", "cat": "wait", "cname": COLOURS["wait"], "args": {**said, "in": name}}
        yield {"ph": "X", **waiting, **place, **span(start, busy)}
    if stop > busy or stop == start:
        category = category_of(event.action)
        colour = {"cname": COLOURS[category]} if category in COLOURS else {}
        yield {"ph": "X", "name": name, "cat": category, **colour, "args": said, **place, **span(busy, stop)}


def arrows_of(traces: Sequence[WorkerTrace], origin: float) -> Iterator[Slice]:
    """From the beginning of every Send to the end of the wait in its Receive; those without a counterpart have none."""
    sent: dict[Message, tuple[WorkerTrace, int]] = {}
    for trace, event in messages(traces, (Send, SendGradient)):
        start, busy, stop = times_of(event, origin)
        sent[message_of(trace.rank, event)] = trace, start if busy == stop else busy
    number = 0
    for trace, event in messages(traces, (Receive, ReceiveGradient)):
        found = sent.get(message_of(trace.rank, event))
        if found is None:
            continue
        sender, leaves = found
        start, busy, stop = times_of(event, origin)
        inside = range(start if busy == stop else busy, max(stop, start + 1))
        arrives = min(max(leaves, inside.start), inside.stop - 1)
        arrow = {"name": "message", "cat": "message", "id": number}
        yield {"ph": "s", **arrow, "pid": sender.host, "tid": sender.rank, "ts": leaves / 1e3}
        yield {"ph": "f", "bp": "e", **arrow, "pid": trace.host, "tid": trace.rank, "ts": arrives / 1e3}
        number += 1


def marks_of(traces: Sequence[WorkerTrace], origin: float) -> Iterator[Slice]:
    """A line across all workers where the first of them begins a step."""
    begins: dict[int, int] = {}
    for trace in traces:
        for event in trace.events:
            start = nanoseconds(event.start - origin)
            begins[event.step] = min(start, begins.get(event.step, start))
    for step, start in sorted(begins.items()):
        place = {"pid": traces[0].host, "tid": traces[0].rank}
        yield {"ph": "i", "s": "g", "name": f"step {step}", "cat": "step", "ts": start / 1e3, **place}


def messages(traces: Sequence[WorkerTrace], kinds: tuple[type, ...]) -> Iterator[tuple[WorkerTrace, Event]]:
    for trace in traces:
        for event in trace.events:
            if isinstance(event.action, kinds):
                yield trace, event


def times_of(event: Event, origin: float) -> tuple[int, int, int]:
    """Beginning, end of the wait and end, in whole nanoseconds: neighbours meet exactly."""
    start, stop = nanoseconds(event.start - origin), nanoseconds(event.stop - origin)
    return start, min(start + nanoseconds(event.waited), stop), stop


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def span(start: int, stop: int) -> dict[str, float]:
    return {"ts": start / 1e3, "dur": (stop - start) / 1e3}
