"""Contenders take turns: each keeps its processes, steps when asked, and sleeps in between.

    round 0   B: 7 steps   A: 7 steps   C: 7 steps
    round 1   A: 7 steps   C: 7 steps   B: 7 steps       in another order, the same in every comparison

Whatever else the machine does then hits all of them alike. Free of torch.
"""

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from samestep.bench.contenders.contender_process import (
    ANSWERS_IN,
    Contender,
    DoesNotApply,
    Failed,
)


@dataclass
class Measurements:
    """What is known of a contender after the rounds."""

    medians: list[float] = field(default_factory=list)  # seconds of a step, one per round
    losses: list[float] = field(default_factory=list)  # of the first step, then of the last of every turn
    refused: str | None = None  # why it does not apply
    failed: str | None = None
    note: str = ""


@dataclass(frozen=True)
class TimeBudget:
    """How long a comparison may go on."""

    seconds: float  # in all; the rounds get what coming up has left of them, and half of them at least
    rounds: int | None = None  # as many, however long
    steps: int | None = None  # per turn

    ROUNDS = 12  # what steps per turn are chosen for
    FEWEST = 3  # rounds, however long they take
    MOST = 40  # steps of a turn

    def steps_of(self, step_seconds: Sequence[float], left: float) -> int:
        """Steps of a turn. step_seconds: of every contender; left: for all rounds."""
        if self.steps is not None:
            return self.steps
        affordable = left / (self.rounds or self.ROUNDS) / max(sum(step_seconds), 1e-9)
        return max(1, min(self.MOST, int(affordable) - WARM))

    def goes_on(self, done: int, longest: float, left: float) -> bool:
        """Whether another round is due. longest: seconds of the longest so far."""
        if self.rounds is not None:
            return done < self.rounds
        return done < self.FEWEST or longest < left


WARM = 2  # steps at the head of a turn that do not count: the others' data are still in the caches, and the other
# workers of this contender may have begun the first one while worker 0 waited for its turn
LONG = 0.1  # seconds of a step that makes caches warm by itself

Say = Callable[[str], None]


class Rounds:
    """Contenders that take turns. Those that do not apply or fail drop out and say why."""

    def __init__(self, names: Sequence[str], say: Say) -> None:
        self.found = {name: Measurements() for name in names}
        self._running: dict[str, Contender] = {}
        self._usual: dict[str, float] = {}  # seconds of a step
        self._say = say

    def start(self, makers: Mapping[str, Callable[[], Contender]]) -> None:
        """Bring all of them up at once, and let each step a little."""
        for name, make in makers.items():
            self._running[name] = make()
        for name in list(self._running):
            self._say(f"waiting for {name}")
            with self._dropping_out(name):
                up = self._running[name].come_up()
                self.found[name].losses.append(up["loss"])
                self.found[name].note = up.get("note", "")
        for name in list(self._running):
            self._usual[name] = self._turn(name, 1, 0) or 0.0

    def run(self, pace: TimeBudget, seconds: float) -> None:
        """Rounds, for so many seconds."""
        deadline = time.monotonic() + seconds
        steps = pace.steps_of([self._usual[name] for name in self._running], seconds)
        warm = {name: 1 if usual > LONG else WARM for name, usual in self._usual.items()}
        done, longest = 0, 0.0
        while self._running and pace.goes_on(done, longest, deadline - time.monotonic()):
            began = time.monotonic()
            self._say(f"round {done + 1}, {steps} steps each")
            for name in order_of(list(self._running), done):
                median = self._turn(name, steps, warm[name])
                self.found[name].medians += [] if median is None else [median]
            done, longest = done + 1, max(longest, time.monotonic() - began)

    def stop(self) -> None:
        for contender in self._running.values():
            contender.end()
        for contender in self._running.values():
            contender.stop()

    def _turn(self, name: str, steps: int, warm: int) -> float | None:
        """The median of a turn; None when the contender dropped out."""
        patience = ANSWERS_IN + 20 * self._usual.get(name, 0.0) * (steps + warm)
        with self._dropping_out(name):
            seconds, loss = self._running[name].turn(steps, warm, patience)
            self.found[name].losses.append(loss)
            return statistics.median(seconds)
        return None

    @contextlib.contextmanager
    def _dropping_out(self, name: str) -> Iterator[None]:
        """Inside, a contender that fails is noted and stopped; the others go on."""
        try:
            yield
        except DoesNotApply as error:
            self.found[name].refused = str(error)
            self._running.pop(name).stop()
        except Failed as error:
            self.found[name].failed = str(error)
            self._running.pop(name).stop()


def race(
    makers: Mapping[str, Callable[[], Contender]], pace: TimeBudget, say: Say = lambda text: None
) -> dict[str, Measurements]:
    """What was found of each. However it ends, no process is left behind."""
    began = time.monotonic()
    one = Rounds(list(makers), say)
    try:
        one.start(makers)
        one.run(pace, max(pace.seconds - (time.monotonic() - began), pace.seconds / 2))
    finally:
        one.stop()
    return one.found


def order_of(names: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: shuffled, and the same in every comparison of as many."""
    order = list(names)
    random.Random(number).shuffle(order)
    return order
