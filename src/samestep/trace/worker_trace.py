"""The last steps of one worker, as a value that travels: from its ring to whoever shows it.

{"rank": 0, "host": 0, "clock_error": 0.0,
 "actions": [["Forward", {"shard": 0, "segment": 0}], ...],      each once
 "events": [[step, number of the action, start, stop, waited], ...]}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from samestep.schedule.actions import Action, Receive, ReceiveGradient, Send, SendGradient, class_name
from samestep.trace.timesheet import Event, Ring

Message = tuple[int, bool, int, int, int, int]  # step, whether forward, shard, stage, from, to

CLASSES: Mapping[str, type] = {class_name(kind): kind for kind in get_args(Action)}


@dataclass(frozen=True)
class WorkerTrace:
    """The actions of one worker with their times, on worker 0's clock.

    clock_error: seconds by which its times may be wrong against those of worker 0.
    """

    rank: int
    host: int
    events: tuple[Event, ...]  # in the order of time; whole steps
    clock_error: float = 0.0


def last_steps(ring: Ring, count: int) -> tuple[Event, ...]:
    """The last `count` steps that the ring holds from their beginning."""
    events = tuple(ring)
    steps = sorted({event.step for event in events})
    if ring.is_full:
        steps = steps[1:]  # the ring has forgotten some of the oldest
    kept = set(steps[-count:])
    return tuple(event for event in events if event.step in kept)


def encoded(trace: WorkerTrace, shift: float = 0.0) -> bytes:
    """As JSON. shift: seconds to add to this worker's clock to get worker 0's."""
    numbers: dict[Action, int] = {}
    events = [
        (e.step, numbers.setdefault(e.action, len(numbers)), e.start + shift, e.stop + shift, e.waited)
        for e in trace.events
    ]
    found = {
        "rank": trace.rank,
        "host": trace.host,
        "clock_error": trace.clock_error,
        "actions": [[class_name(type(action)), fields_of(action)] for action in numbers],
        "events": events,
    }
    return json.dumps(found).encode()


def decoded(text: bytes) -> WorkerTrace:
    found = json.loads(text)
    actions = [action_of(name, said) for name, said in found["actions"]]
    events = tuple(
        Event(step, actions[number], start, stop, waited) for step, number, start, stop, waited in found["events"]
    )
    return WorkerTrace(found["rank"], found["host"], events, found["clock_error"])


def fields_of(action: Action) -> dict[str, Any]:
    """An action's fields in words of JSON: shard, segment or stage, peer; sets of shards as lists."""
    said = {field.name: getattr(action, field.name) for field in fields(action)}
    return {name: list(value) if isinstance(value, Sequence) else value for name, value in said.items()}


def action_of(name: str, said: Mapping[str, Any]) -> Action:
    """The counterpart of `fields_of`."""
    kind = CLASSES[name]
    values = dict(said)
    if "shards" in values:
        shards = values["shards"]
        is_range = next(field.type for field in fields(kind) if field.name == "shards") is range
        values["shards"] = range(shards[0], shards[-1] + 1) if is_range else tuple(shards)
    action: Action = kind(**values)
    return action


def message_of(rank: int, event: Event) -> Message:
    """The key that a send and its receive, of worker `rank`, have in common."""
    action: Action = event.action
    assert isinstance(action, Send | SendGradient | Receive | ReceiveGradient)
    ends = (rank, action.peer) if isinstance(action, Send | SendGradient) else (action.peer, rank)
    return event.step, isinstance(action, Send | Receive), action.shard, action.stage, *ends
