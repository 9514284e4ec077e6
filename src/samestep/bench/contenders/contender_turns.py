"""A contender's side of a comparison: it waits for its turn, steps, and answers with the seconds.

    orchestrator   {"steps": 7}                                         {}  (no more)
    contender      {"ready": ...}  {"seconds": [...], "loss": ...}          or {"failed": why}, {"refused": why}

One JSON object per line, through two pipes without a name, which are opened under /proc by the
orchestrator's process id and the number of a pipe's end. Free of torch.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class Pipes:
    """Paths of the pipes for questions to a contender and for its answers."""

    ask: str
    answer: str


class ContenderTurns:
    """The pipes of a contender, opened by its first worker."""

    def __init__(self, pipes: Pipes) -> None:
        self._answers: TextIO = open(pipes.answer, "w", buffering=1)  # noqa: SIM115, PTH123 - open as long as we live
        self._asks: TextIO = open(pipes.ask)  # noqa: SIM115, PTH123

    def say(self, **message: Any) -> None:
        self._answers.write(json.dumps(message) + "\n")

    def wait(self) -> int:
        """Wait for the number of steps of the next turn; 0 when no turn follows."""
        line = self._asks.readline()
        return int(json.loads(line).get("steps", 0)) if line else 0


def take_turns(wait: Callable[[], int], step: Callable[[], Any], answer: Callable[[list[float], Any], None]) -> None:
    """Step as often as asked, turn after turn.

    answer: gets the seconds of every step, and the result of the last.
    """
    while steps := wait():
        seconds = []
        mark = time.perf_counter()
        for _ in range(steps):
            result = step()
            now = time.perf_counter()
            seconds.append(now - mark)
            mark = now
        answer(seconds, result)


class WaitForTurn:
    """A callback of a job that lets worker 0 of a run wait between steps; the others wait for worker 0.

    It is ready after the first step.
    """

    def __init__(self, pipes: Pipes, stop: Callable[[], None]) -> None:
        self._pipes, self._stop = pipes, stop
        self._turns: ContenderTurns | None = None
        self._asked = 0
        self._seconds: list[float] = []
        self._mark = 0.0

    def __call__(self, step: int, loss: float, metrics: object) -> None:
        now = time.perf_counter()
        if self._turns is None:
            self._turns = ContenderTurns(self._pipes)
            self._turns.say(ready=True, loss=loss)
        else:
            self._seconds.append(now - self._mark)
            if len(self._seconds) < self._asked:
                self._mark = now
                return
            self._turns.say(seconds=self._seconds, loss=loss)
        self._asked, self._seconds = self._turns.wait(), []
        if not self._asked:
            self._stop()
        self._mark = time.perf_counter()
