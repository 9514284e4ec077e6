"""In which steps memory at rest is watched, so that all of it takes a small share of the time.

All workers watch in the same steps: if each chose its own, everybody would wait for each in turn. So they exchange
what share of the steps each could afford, and take the smallest.

    wish = (share * step * K - audit) / (watch * K)      seconds of a step, of an audit every K steps, of a watch
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SHARE = 0.009  # of the time; with what it takes from caches, and from others who wait, it costs up to 2 %
RECENT = 32  # measurements that count


def recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class WatchPace:
    """every: steps from one audit to the next. fraction: of the steps that are watched, agreed by all."""

    every: int
    fraction: float = 1.0
    steps: deque[float] = field(default_factory=recent)  # seconds
    watches: deque[float] = field(default_factory=recent)
    audits: deque[float] = field(default_factory=recent)

    def wish(self) -> float:
        """The share of steps that this worker can afford to watch, from its measurements."""
        if not self.steps or not self.watches:
            return 1.0
        audit = statistics.median(self.audits) if self.audits else 0.0
        left = SHARE * statistics.median(self.steps) * self.every - audit
        usual = sorted(self.watches)[len(self.watches) // 4]  # the first ones wake up memory, and others disturb
        return min(1.0, max(0.0, left / (usual * self.every)))

    def agree(self, wishes: Sequence[float]) -> None:
        self.fraction = min(wishes)

    def watches_after(self, step: int) -> bool:
        """Evenly spread, whatever the fraction."""
        return int(step * self.fraction) != int((step - 1) * self.fraction)
