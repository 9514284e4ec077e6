"""Numbers from the traces of a run: medians over its steps."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from samestep.diagnose.waits import waits_of
from samestep.schedule.actions import COMMUNICATION, Forward, Lockstep, Send, SendGradient, SliceForward, class_name
from samestep.schedule.draw import COMPUTING
from samestep.trace.timesheet import Event
from samestep.trace.worker_trace import WorkerTrace

COMPUTE = tuple(class_name(kind) for kind in COMPUTING)
COMMUNICATE = tuple(class_name(kind) for kind in COMMUNICATION)

K = TypeVar("K")


@dataclass(frozen=True)
class TraceMedians:
    """Seconds are per step, medians over the steps.

    busy: per worker, by the action's class, without waiting.
    waits: by (the worker that waited, the worker it waited for).
    under_way: per worker, waiting for bytes under way, by the action's class.
    shards: per worker, shards that it computes in whole segments.
    """

    steps: int
    seconds: float
    busy: tuple[Mapping[str, float], ...]
    waits: Mapping[tuple[int, int], float]
    under_way: tuple[Mapping[str, float], ...]
    hosts: tuple[int, ...]
    shards: tuple[int, ...]
    is_staged: bool
    is_sliced: bool
    clock_error: float = 0.0

    @property
    def workers(self) -> int:
        return len(self.busy)

    def busy_in(self, rank: int, kinds: Iterable[str]) -> float:
        return sum(self.busy[rank].get(kind, 0.0) for kind in kinds)

    def total(self, kind: str) -> float:
        """Busy seconds of all workers."""
        return sum(own.get(kind, 0.0) for own in self.busy)

    @property
    def compute(self) -> tuple[float, ...]:
        """Forward and backward seconds of each worker."""
        return tuple(self.busy_in(rank, COMPUTE) for rank in range(self.workers))

    @property
    def slowest(self) -> int:
        """The worker that is busy longest."""
        return max(range(self.workers), key=lambda rank: sum(self.busy[rank].values()))


def trace_medians(traces: Sequence[WorkerTrace]) -> TraceMedians:
    """Medians over the steps. traces: of all workers, in the order of ranks, of at least one step."""
    traces = with_same_steps(traces)
    waits = waits_of(traces)
    events = [event for trace in traces for event in trace.events]
    steps = sorted({event.step for event in events})
    return TraceMedians(
        steps=len(steps),
        seconds=statistics.median(duration(event for event in events if event.step == step) for step in steps),
        busy=tuple(
            per_step(((e.step, class_name(type(e.action)), e.busy) for e in trace.events), steps) for trace in traces
        ),
        waits=per_step(((w.step, (w.rank, w.cause), w.seconds) for w in waits if w.cause is not None), steps),
        under_way=tuple(
            per_step(((w.step, w.kind, w.seconds) for w in waits if w.cause is None and w.rank == trace.rank), steps)
            for trace in traces
        ),
        hosts=tuple(trace.host for trace in traces),
        shards=tuple(len(shards_of(trace)) for trace in traces),
        is_staged=any(isinstance(event.action, Send | SendGradient) for event in events),
        is_sliced=any(isinstance(event.action, SliceForward) for event in events),
        clock_error=max(trace.clock_error for trace in traces),
    )


def with_same_steps(traces: Sequence[WorkerTrace]) -> list[WorkerTrace]:
    """The traces of those steps that all workers still have in their rings."""
    common = set.intersection(*({event.step for event in trace.events} for trace in traces))
    assert common, "rings hold at least one step"
    return [WorkerTrace(t.rank, t.host, tuple(e for e in t.events if e.step in common), t.clock_error) for t in traces]


def duration(events: Iterable[Event]) -> float:
    """Seconds from the first start to the last end."""
    found = list(events)
    return max(event.stop for event in found) - min(event.start for event in found)


def shards_of(trace: WorkerTrace) -> set[int]:
    """The shards of the step with most of them: the last step of an epoch may have fewer."""
    found: dict[int, set[int]] = {}
    for event in trace.events:
        action = event.action
        own = action.shards if isinstance(action, Lockstep) else [action.shard] if isinstance(action, Forward) else []
        found.setdefault(event.step, set()).update(own)
    return max(found.values(), key=len, default=set())


def per_step(spans: Iterable[tuple[int, K, float]], steps: Sequence[int]) -> dict[K, float]:
    """Median over all steps of the sum in each, by name. spans: step, name and seconds of each."""
    sums: dict[K, dict[int, float]] = {}
    for step, name, seconds in spans:
        sums.setdefault(name, dict.fromkeys(steps, 0.0))[step] += seconds
    return {name: statistics.median(own.values()) for name, own in sums.items()}
