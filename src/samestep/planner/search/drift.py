"""Workers whose speed changes while they train: when to deal the shards anew, and how.

Every worker tells how long it computed in each step; everybody sees all of it and comes to the same decision.

    seconds per shard of worker w      c_w = sum of its seconds / sum of its shards, over a window of WINDOW steps
    a step takes                       max over w of n_w c_w, for n_w shards
    new shares                         the greedy rule of greedy_shares.py over n c_w

They are dealt anew when a step would be shorter by more than GAIN of it, by more than LEAST seconds, and by more than
what a step differs from the next one anyway; and when the last steps look like the whole window, since a change that is
half inside it would be answered half. Up to three steps before a change, with calm since, are left out. The first step
after a deal does not count, nor that of the run: loaders begin in it.

A speed that goes up and down faster than it can be answered must not drag the shares along. A deal that takes back what
the one before gave, and comes soon after it, is a turn, and every turn makes the window twice as long. What is then
seen is the mean of ups and downs. A window without a deal for SOON times its length is as short as at first again.

    deals    4+4 -> 6+2 -> 4+4 -> 6+2 .. -> 5+3 .............................. -> 4+4
    window      6      6     12         24                                   6

A worker that got no shard cannot be measured. After a while it is tried: it gets one of the slowest worker's shards,
for three steps if it is still slow. Every trial in vain doubles the while.

    deals    4+4 -> 8+0 ................ -> 7+1 -> 8+0 ................................ -> 7+1 -> 4+4
                       FIRST_TRIAL steps                  2 FIRST_TRIAL steps
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from samestep.planner.search.greedy_shares import greedy_shares

WINDOW = 6  # steps that a decision looks at
SETTLED = 1.5  # how much the last steps may differ from the window
LAST = 2  # steps
KEPT = 3  # steps of the window that a change may leave
GAIN = 0.1  # of a step
LEAST = 1e-3  # seconds: a new deal costs about as much as some of those
SOON = 4  # windows within which a deal that takes the last one back is a turn
LONGEST = 16 * WINDOW  # steps of a window
FIRST_TRIAL = 64  # steps without a shard


@dataclass
class Drift:
    """What one worker knows of all workers' speeds. The same on every worker."""

    assign: tuple[int, ...]
    _steps: deque[Sequence[float]] = field(default_factory=lambda: deque(maxlen=LONGEST))  # since the last deal
    _pace: list[float] = field(default_factory=list)  # seconds per shard, as last known
    _since: int = 0  # steps since the last deal that count
    _has_begun: bool = False  # whether there was a step since the last deal
    _window: int = WINDOW
    _change: tuple[int, ...] = ()  # what the last deal gave to each worker
    _tried: int | None = None  # the worker of which two steps are enough
    _idle: dict[int, int] = field(default_factory=dict)  # by worker without shards: steps until it is tried
    _while: dict[int, int] = field(default_factory=dict)  # and how many there were in all

    def note(self, seconds: Sequence[float], num_shards: int) -> None:
        """How long each worker computed in a step. One with fewer shards than the plan has is left out."""
        if not self._has_begun:
            self._has_begun = True
        elif num_shards == sum(self.assign):
            self._steps.append(tuple(seconds))
            self._since += 1
            if self._since >= SOON * self._window:
                self._window = WINDOW
            self._idle = {w: left - 1 for w, left in self._idle.items()}

    @property
    def pace(self) -> tuple[float, ...]:
        """Seconds that a shard takes each worker, as the last deal found them; empty before the first."""
        return tuple(self._pace)

    def redealt(self) -> tuple[int, ...] | None:
        """The shares that are worth it, if there are any; the window then begins anew."""
        steps = list(self._steps)[-self._window :]
        if len(steps) < (self._window if self._tried is None else LAST):
            return None
        pace, recent = self._paces(steps), self._paces(steps[-LAST:])
        if self._window == WINDOW:
            if differs(pace, recent):
                return None
            others = [i for i, step in enumerate(steps) if differs(self._paces([step]), recent)]
            if others == list(range(len(others))) and len(others) <= len(steps) - KEPT:  # a change, and calm since
                steps = steps[len(others) :]
                pace = self._paces(steps)
        dealt = greedy_shares(sum(self.assign), [lambda n, c=c: n * c for c in pace])  # type: ignore[misc]
        before, after = self._step(self.assign, pace), self._step(dealt, pace)
        if before - after > max(LEAST, GAIN * before, unrest(steps)):
            return self._deal(dealt, pace)
        if self._tried is not None:
            if len(self._steps) < WINDOW:
                return None
            self._end_trial(keeps=True)
        return self._trial(pace)

    def _takes_back(self, dealt: Sequence[int]) -> bool:
        """Whether some worker gets what the last deal took from it, or the other way round."""
        change = [new - old for new, old in zip(dealt, self.assign, strict=True)]
        return any(a * b < 0 for a, b in zip(change, self._change, strict=False))

    def _deal(self, dealt: tuple[int, ...], pace: list[float]) -> tuple[int, ...]:
        if self._tried is not None:
            self._end_trial(keeps=dealt[self._tried] > 0)
        elif self._takes_back(dealt) and self._since < SOON * self._window:
            self._window = min(2 * self._window, LONGEST)
        return self._take(dealt, pace)

    def _end_trial(self, *, keeps: bool) -> None:
        assert self._tried is not None
        if keeps:
            del self._while[self._tried]
        else:
            self._while[self._tried] *= 2
        self._tried = None

    def _take(self, dealt: tuple[int, ...], pace: list[float]) -> tuple[int, ...]:
        self._change = tuple(new - old for new, old in zip(dealt, self.assign, strict=True))
        for worker, (new, old) in enumerate(zip(dealt, self.assign, strict=True)):
            if old and not new:
                self._idle[worker] = self._while.setdefault(worker, FIRST_TRIAL)
            elif new:
                self._idle.pop(worker, None)
        self.assign, self._pace, self._since, self._has_begun = dealt, pace, 0, False
        self._steps.clear()
        return dealt

    def _trial(self, pace: list[float]) -> tuple[int, ...] | None:
        """One of the slowest worker's shards for one that had none long enough."""
        worker = next((w for w, left in self._idle.items() if left <= 0), None)
        if worker is None:
            return None
        able = [w for w, count in enumerate(self.assign) if count > 1]  # there are as many shards as workers at least
        giver = max(able, key=lambda w: self.assign[w] * pace[w])
        dealt = list(self.assign)
        dealt[giver], dealt[worker] = dealt[giver] - 1, 1
        self._tried = worker
        return self._take(tuple(dealt), pace)

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


def differs(pace: Sequence[float], other: Sequence[float]) -> bool:
    """Whether any worker's is another one."""
    return any(max(a, b) > SETTLED * min(a, b) for a, b in zip(pace, other, strict=True))


def unrest(steps: Sequence[Sequence[float]]) -> float:
    """What the longest worker's time differs by between steps, as the mean of so many may."""
    longest = [max(step) for step in steps]
    return float(2 * statistics.stdev(longest) / len(longest) ** 0.5)
