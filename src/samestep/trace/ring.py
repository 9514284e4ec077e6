"""What a worker did last: its actions with their times, in a ring that forgets the oldest.

Times are seconds of the monotonic clock, which all processes of one host share.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    """The last `capacity` events. To add one costs a tuple."""

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
        """Whether it may have forgotten some."""
        return len(self._events) == self._events.maxlen
