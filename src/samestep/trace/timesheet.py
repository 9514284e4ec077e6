"""How long a worker computed, communicated and waited: seconds per kind, summed over a run, and action by action."""

import time
from dataclasses import dataclass, field
from typing import Any

from samestep.trace.ring import Ring
from samestep.trace.whereabouts import Whereabouts


@dataclass
class Timesheet:
    """Filled by the executor (per action) and by the transports (time spent waiting)."""

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
        """Book the time since the last mark as computation, less what was spent waiting."""
        self.compute += self._lap(step, action)

    def communicated(self, step: int, action: Any) -> None:
        self.communicate += self._lap(step, action)

    def _lap(self, step: int, action: Any) -> float:
        now = time.perf_counter()
        began, self._mark = self._mark, now
        waited, self._waited = self._waited, 0.0
        self.wait += waited
        self.ring.add(step, action, began, now, waited)
        return now - began - waited
