"""A worker's use of time: seconds per kind over a run, and its last actions one by one.

Times are seconds of the monotonic clock, which all processes of one host share.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from samestep.trace.whereabouts import Whereabouts

CAPACITY = 65_536  # events; about 15 MB when full


@dataclass(frozen=True)
class Event:
    """One action of one step."""

    step: int
    action: Any  # of schedule.actions; this room does not look into it
    start: float
    stop: float
    waited: float  # seconds of it spent waiting for other workers

    @property
    def busy(self) -> float:
        return self.stop - self.start - self.waited


class Ring:
    """The last `capacity` events; the oldest are dropped. Adding one costs a tuple."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._events: deque[tuple[int, Any, float, float, float]] = deque(maxlen=capacity)

    def add(self, step: int, action: Any, start: float, stop: float, waited: float) -> None:
        self._events.append((step, action, start, stop, waited))

    def __iter__(self) -> Iterator[Event]:
        return (Event(*event) for event in self._events)

    def __len__(self) -> int:
        return len(self._events)

    @property
    def is_full(self) -> bool:
        """Whether events may have been dropped."""
        return len(self._events) == self._events.maxlen


@dataclass
class Timesheet:
    """Seconds that one worker computed, communicated and waited.

    Filled in by the step, action by action, and by transports while they wait.
    """

    compute: float = 0.0  # seconds
    communicate: float = 0.0
    wait: float = 0.0
    ring: Ring = field(default_factory=Ring)
    whereabouts: Whereabouts = field(default_factory=Whereabouts)  # what others see from outside
    _mark: float = field(default_factory=time.perf_counter)
    _waited: float = 0.0  # since the last mark
    _before: float = 0.0  # seconds computed before this step

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def start(self) -> None:
        self._mark, self._waited, self._before = time.perf_counter(), 0.0, self.compute

    @property
    def computing(self) -> float:
        """Seconds computed since `start`."""
        return self.compute - self._before

    def computed(self, step: int, action: Any) -> None:
        """Book the time since the last mark as computation, less the time spent waiting."""
        self.compute += self._lap(step, action)

    def communicated(self, step: int, action: Any) -> None:
        """Book the time since the last mark as communication, less the time spent waiting."""
        self.communicate += self._lap(step, action)

    def _lap(self, step: int, action: Any) -> float:
        now = time.perf_counter()
        began, self._mark = self._mark, now
        waited, self._waited = self._waited, 0.0
        self.wait += waited
        self.ring.add(step, action, began, now, waited)
        return now - began - waited
