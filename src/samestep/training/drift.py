"""Workers whose speed changes while they train: when to reassign the shards, and how.

Every worker reports how long it computed in each step; all see the same seconds and come to the same decision.

    seconds per shard of worker w      c_w = sum of its seconds / sum of its shards, over a window of WINDOW steps
    a step takes                       max over w of n_w c_w, for n_w shards
    new shares                         the greedy rule of greedy_shares.py over n c_w

Shards are reassigned when a step would become shorter by more than GAIN of it, by more than LEAST seconds, and by more
than steps differ from one another anyway; and only when the last steps look like the whole window, since a change half
inside the window would be half answered. Up to three steps before a change are left out if the later ones agree. The
first step after a reassignment does not count, nor does that of the run: loaders begin in it.

A speed that changes faster than it can be answered must not drag the shares along. A reassignment that takes back what
the one before gave, soon after it, is a turn, and every turn makes the window twice as long. The window then holds the
mean of ups and downs. After SOON times its length without a reassignment, a window is as short as at first again.

    assignments  4+4 -> 6+2 -> 4+4 -> 6+2 .. -> 5+3 .............................. -> 4+4
    window          6      6     12         24                                   6

A worker without shards cannot be measured. After FIRST_TRIAL steps it is tried: it gets one of the slowest worker's
shards, for three steps if it is still slow. Every trial in vain doubles the number of steps until the next one.

    assignments  4+4 -> 8+0 ................ -> 7+1 -> 8+0 ................................ -> 7+1 -> 4+4
                           FIRST_TRIAL steps                  2 FIRST_TRIAL steps
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from samestep.job.job import Job
from samestep.job.training_data import Note
from samestep.numerics.numerics import num_shards_of
from samestep.parallel.execution.attendant import Attendant
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.step import StepResult
from samestep.planner.search.greedy_shares import greedy_shares
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.parallelize import reassign_shards
from samestep.setup.run_memory import RunMemory

WINDOW = 6  # steps that a decision looks at
SETTLED = 1.5  # how much the last steps may differ from the window
LAST = 2  # steps
KEPT = 3  # steps of the window that a change may leave
GAIN = 0.1  # of a step
LEAST = 1e-3  # seconds; a reassignment costs a few milliseconds
SOON = 4  # windows within which a reassignment that takes the last one back is a turn
LONGEST = 16 * WINDOW  # steps of a window
FIRST_TRIAL = 64  # steps without a shard


@dataclass(frozen=True)
class Reassignment:
    """step: the first one with these shares. pace: seconds that a shard takes each worker."""

    step: int
    assign: tuple[int, ...]
    pace: tuple[float, ...]


class Rebalancing(Attendant):
    """Reassigns one worker's shards between steps. shared: memory that is large enough for any assignment."""

    def __init__(
        self, executor: Executor, job: Job, prepared: LaidOutModel, shared: RunMemory, note: Note | None
    ) -> None:
        self._executor, self._job, self._prepared, self._shared, self._note = executor, job, prepared, shared, note
        self._drift = Drift(executor.plan.assign)
        self.done: list[Reassignment] = []

    def before_step(self, step: int) -> None:
        """Reassign shards if that saves time."""
        assign = self._drift.reassignment()
        if assign is not None:
            reassign_shards(self._executor, assign, self._job, self._prepared, self._shared, step, self._note)
            self.done.append(Reassignment(step, assign, self._drift.pace))

    def after_step(self, result: StepResult, rows: int) -> None:
        self._drift.note(result.seconds, num_shards_of(rows, self._executor.plan.numerics.shards))


@dataclass
class Drift:
    """The speeds of all workers, as one worker knows them. Equal on every worker."""

    assign: tuple[int, ...]
    _steps: deque[Sequence[float]] = field(default_factory=lambda: deque(maxlen=LONGEST))  # since the last reassignment
    _pace: list[float] = field(default_factory=list)  # seconds per shard, as last known
    _since: int = 0  # steps since the last reassignment that count
    _has_begun: bool = False  # whether there was a step since the last reassignment
    _window: int = WINDOW
    _change: tuple[int, ...] = ()  # shards that the last reassignment gave to each worker
    _tried: int | None = None  # the worker on trial; LAST steps are enough to judge it
    _idle: dict[int, int] = field(default_factory=dict)  # by worker without shards: steps until it is tried
    _pause: dict[int, int] = field(default_factory=dict)  # by worker: steps without shards before a trial

    def note(self, seconds: Sequence[float], num_shards: int) -> None:
        """Record how long each worker computed in a step. Steps with fewer shards than the plan has are left out."""
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
        """Seconds that a shard takes each worker, as of the last reassignment; empty before the first."""
        return tuple(self._pace)

    def reassignment(self) -> tuple[int, ...] | None:
        """Shards per worker that would save time, or None. A reassignment empties the window."""
        steps = list(self._steps)[-self._window :]
        if len(steps) < (self._window if self._tried is None else LAST):
            return None
        pace, recent = self._paces(steps), self._paces(steps[-LAST:])
        if self._window == WINDOW:
            if differs(pace, recent):
                return None
            others = [i for i, step in enumerate(steps) if differs(self._paces([step]), recent)]
            if others == list(range(len(others))) and len(others) <= len(steps) - KEPT:  # a change, and none since
                steps = steps[len(others) :]
                pace = self._paces(steps)
        better = greedy_shares(sum(self.assign), [lambda n, c=c: n * c for c in pace])  # type: ignore[misc]
        before, after = self._step(self.assign, pace), self._step(better, pace)
        if before - after > max(LEAST, GAIN * before, unrest(steps)):
            return self._reassign(better, pace)
        if self._tried is not None:
            if len(self._steps) < WINDOW:
                return None
            self._end_trial(keeps=True)
        return self._trial(pace)

    def _takes_back(self, assign: Sequence[int]) -> bool:
        """Whether some worker gets what the last reassignment took from it, or loses what that gave."""
        change = [new - old for new, old in zip(assign, self.assign, strict=True)]
        return any(a * b < 0 for a, b in zip(change, self._change, strict=False))

    def _reassign(self, assign: tuple[int, ...], pace: list[float]) -> tuple[int, ...]:
        if self._tried is not None:
            self._end_trial(keeps=assign[self._tried] > 0)
        elif self._takes_back(assign) and self._since < SOON * self._window:
            self._window = min(2 * self._window, LONGEST)
        return self._take(assign, pace)

    def _end_trial(self, *, keeps: bool) -> None:
        assert self._tried is not None
        if keeps:
            del self._pause[self._tried]
        else:
            self._pause[self._tried] *= 2
        self._tried = None

    def _take(self, assign: tuple[int, ...], pace: list[float]) -> tuple[int, ...]:
        self._change = tuple(new - old for new, old in zip(assign, self.assign, strict=True))
        for worker, (new, old) in enumerate(zip(assign, self.assign, strict=True)):
            if old and not new:
                self._idle[worker] = self._pause.setdefault(worker, FIRST_TRIAL)
            elif new:
                self._idle.pop(worker, None)
        self.assign, self._pace, self._since, self._has_begun = assign, pace, 0, False
        self._steps.clear()
        return assign

    def _trial(self, pace: list[float]) -> tuple[int, ...] | None:
        """Give one of the slowest worker's shards to a worker that had none long enough."""
        worker = next((w for w, left in self._idle.items() if left <= 0), None)
        if worker is None:
            return None
        able = [w for w, count in enumerate(self.assign) if count > 1]  # there are as many shards as workers at least
        giver = max(able, key=lambda w: self.assign[w] * pace[w])
        assign = list(self.assign)
        assign[giver], assign[worker] = assign[giver] - 1, 1
        self._tried = worker
        return self._take(tuple(assign), pace)

    def _paces(self, steps: Sequence[Sequence[float]]) -> list[float]:
        """Seconds per shard of each worker. One without shards counts as it last was, or as the fastest."""
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
    """Whether any worker's seconds per shard differ by more than SETTLED."""
    return any(max(a, b) > SETTLED * min(a, b) for a, b in zip(pace, other, strict=True))


def unrest(steps: Sequence[Sequence[float]]) -> float:
    """Seconds by which the mean of the longest worker's times may be off by chance: two standard errors."""
    longest = [max(step) for step in steps]
    return float(2 * statistics.stdev(longest) / len(longest) ** 0.5)
