"""Contenders take turns: each keeps its processes, steps when asked, and sleeps in between.

    round 0   B: 7 steps   A: 7 steps   C: 7 steps
    round 1   A: 7 steps   C: 7 steps   B: 7 steps       in another order, the same in every comparison

Other load of the machine then affects all of them equally. Free of torch.
"""

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from samestep.bench.contenders.contender_process import ANSWER_LIMIT, Contender, DoesNotApply, Failed


@dataclass
class Measurements:
    """Measurements of a contender over the rounds."""

    medians: list[float] = field(default_factory=list)  # seconds of a step, one per round
    losses: list[float] = field(default_factory=list)  # of the first step, then of each turn's last step
    refused: str | None = None  # why it does not apply
    failed: str | None = None
    note: str = ""


@dataclass(frozen=True)
class TimeBudget:
    """Limits on the length of a comparison."""

    seconds: float  # in all; the rounds get what starting has not used, and at least half
    rounds: int | None = None  # exactly this many, however long they take
    steps: int | None = None  # per turn

    ROUNDS = 12  # number for which the steps of a turn are chosen
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


WARM = 2  # first steps of a turn that do not count: caches hold the data of others, and the other workers of
# this contender may have begun the first one while worker 0 waited for its turn
LONG = 0.1  # seconds of a step from which on one step warms the caches

Say = Callable[[str], None]


class Rounds:
    """Contenders that take turns. Those that do not apply or fail drop out with the reason."""

    def __init__(self, names: Sequence[str], say: Say) -> None:
        self.found = {name: Measurements() for name in names}
        self._running: dict[str, Contender] = {}
        self._usual: dict[str, float] = {}  # seconds of a step
        self._say = say

    def start(self, makers: Mapping[str, Callable[[], Contender]]) -> None:
        """Start all of them at once, and let each do a step."""
        for name, make in makers.items():
            self._running[name] = make()
        for name in list(self._running):
            self._say(f"waiting for {name}")
            with self._dropping_out(name):
                ready = self._running[name].wait_until_ready()
                self.found[name].losses.append(ready["loss"])
                self.found[name].note = ready.get("note", "")
        for name in list(self._running):
            self._usual[name] = self._turn(name, 1, 0) or 0.0

    def run(self, budget: TimeBudget, seconds: float) -> None:
        """Run rounds within `seconds`."""
        deadline = time.monotonic() + seconds
        steps = budget.steps_of([self._usual[name] for name in self._running], seconds)
        warm = {name: 1 if usual > LONG else WARM for name, usual in self._usual.items()}
        done, longest = 0, 0.0
        while self._running and budget.goes_on(done, longest, deadline - time.monotonic()):
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
        patience = ANSWER_LIMIT + 20 * self._usual.get(name, 0.0) * (steps + warm)
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
        except Failed as error:
            self.found[name].failed = str(error)
        else:
            return
        self._running.pop(name).stop()


def race(
    makers: Mapping[str, Callable[[], Contender]], budget: TimeBudget, say: Say = lambda text: None
) -> dict[str, Measurements]:
    """Measurements of each contender. No process is left behind, however it ends."""
    began = time.monotonic()
    one = Rounds(list(makers), say)
    try:
        one.start(makers)
        one.run(budget, max(budget.seconds - (time.monotonic() - began), budget.seconds / 2))
    finally:
        one.stop()
    return one.found


def order_of(names: Sequence[str], number: int) -> list[str]:
    """Order of the turns in a round: shuffled, and the same in every comparison of equal size."""
    order = list(names)
    random.Random(number).shuffle(order)
    return order
