"""Workers whose speed changes while they train: when to deal the shards anew, and how.

Every worker tells how long it computed in each step; everybody sees all of it and comes to the same decision.

    seconds per shard of worker w      c_w = sum of its seconds / sum of its shards, over the last WINDOW steps
    a step takes                       max over w of n_w c_w, for n_w shards
    new shares                         the greedy rule of shares.py over n c_w

They are dealt anew when a step would be shorter by more than GAIN of it, by more than LEAST seconds, and by more than
what a step differs from the next one anyway; and when the last steps look like the whole window, since a change that is
half inside it would be answered half.
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from samestep.planner.shares import shares

WINDOW = 6  # steps that a decision looks at
SETTLED = 1.5  # how much the last steps may differ from the window
LAST = 2  # steps
GAIN = 0.1  # of a step
LEAST = 1e-3  # seconds: a new deal costs about as much as some of those


@dataclass
class Drift:
    """What one worker knows of all workers' speeds. The same on every worker."""

    assign: tuple[int, ...]
    _steps: deque[Sequence[float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _pace: list[float] = field(default_factory=list)  # seconds per shard, as last known

    def note(self, seconds: Sequence[float], num_shards: int) -> None:
        """How long each worker computed in a step. One with fewer shards than the plan has is left out."""
        if num_shards == sum(self.assign):
            self._steps.append(tuple(seconds))

    def redealt(self) -> tuple[int, ...] | None:
        """The shares that are worth it, if there are any; the window then begins anew."""
        if len(self._steps) < WINDOW:
            return None
        pace, recent = self._paces(list(self._steps)), self._paces(list(self._steps)[-LAST:])
        if any(max(a, b) > SETTLED * min(a, b) for a, b in zip(pace, recent, strict=True)):
            return None
        dealt = shares(sum(self.assign), [lambda n, c=c: n * c for c in pace])  # type: ignore[misc]
        before, after = self._step(self.assign, pace), self._step(dealt, pace)
        if before - after <= max(LEAST, GAIN * before, self._unrest()):
            return None
        self.assign, self._pace = dealt, pace
        self._steps.clear()
        return dealt

    def _paces(self, steps: Sequence[Sequence[float]]) -> list[float]:
        """Seconds per shard. A worker without shards is as fast as it was, or as the fastest."""
        found = [
            sum(step[w] for step in steps) / (len(steps) * count) if count else None
            for w, count in enumerate(self.assign)
        ]
        known = [pace for pace in found if pace is not None]
        spare = self._pace or [min(known)] * len(found)
        return [max(spare[w] if pace is None else pace, 1e-9) for w, pace in enumerate(found)]

    @staticmethod
    def _step(assign: Sequence[int], pace: Sequence[float]) -> float:
        return max(count * seconds for count, seconds in zip(assign, pace, strict=True))

    def _unrest(self) -> float:
        """What the longest worker's time differs by between steps, as the mean of the window may."""
        longest = [max(step) for step in self._steps]
        return float(2 * statistics.stdev(longest) / len(longest) ** 0.5)
