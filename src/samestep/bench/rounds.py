"""Contenders take turns: each keeps its processes, steps when asked, and sleeps in between.

    round 0   B: 7 steps   A: 7 steps   C: 7 steps
    round 1   A: 7 steps   C: 7 steps   B: 7 steps       in another order, the same in every comparison

Whatever else the machine does then hits all of them alike. Free of torch.
"""

import contextlib
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samestep.bench.turns import WARM, Pipes

UP_IN = 300.0  # seconds until a contender that does not come up has failed
ANSWERS_IN = 60.0  # seconds until one that was asked for steps has, if its steps were not known to be as long
ENDS_IN = 10.0  # seconds that one may take to end


class DoesNotApply(Exception):
    """A contender says that it cannot compute this job, and why."""


class Failed(Exception):
    """A contender ended or hung, and why as far as it is known."""


class Contender:
    """The orchestrator's side of one. command: gets the paths of its pipes as its last two arguments.

    Nothing of it has a name: pipes are opened under /proc, what it prints goes to a file that has been removed.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], message: str = "") -> None:
        ask, self._ask = os.pipe()
        self._answer, answer = os.pipe()
        self._theirs = [ask, answer]
        self._printed = tempfile.TemporaryFile()
        self._message = message
        self._rest = b""
        place = f"/proc/{os.getpid()}/fd"
        self.process = subprocess.Popen(
            [*command, f"{place}/{ask}", f"{place}/{answer}"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=self._printed,
            start_new_session=True,  # a Ctrl-C in the terminal is for the orchestrator to pass on
        )
        self._pidfd = os.pidfd_open(self.process.pid)

    def come_up(self) -> dict[str, Any]:
        """What it says when it is ready. Raises DoesNotApply or Failed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(self._message.encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # its end tells more
        found = self._hear(UP_IN)
        for end in self._theirs:
            os.close(end)
        self._theirs = []
        return found

    def turn(self, steps: int, patience: float = ANSWERS_IN) -> tuple[list[float], float]:
        """Seconds of each of so many steps after the warm ones, and the loss of the last. Raises Failed."""
        try:
            os.write(self._ask, json.dumps({"steps": steps + WARM}).encode() + b"\n")
        except BrokenPipeError:
            pass
        found = self._hear(patience)
        return found["seconds"][WARM:], found["loss"]

    def _hear(self, patience: float) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._line(time.monotonic() + patience, patience))
        if "refused" in found:
            raise DoesNotApply(found["refused"])
        if "failed" in found:
            raise Failed(found["failed"])
        return found

    def _line(self, deadline: float, patience: float) -> bytes:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answer, self._pidfd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Failed(f"no answer within {patience:.0f} s{self._last_words()}")
            if self._answer not in ready or not (part := os.read(self._answer, 1 << 16)):
                raise Failed(f"it ended with exit status {self.process.wait()}{self._last_words()}")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""

    def stop(self) -> None:
        """End it with all its processes, wherever it is."""
        self.process.terminate()
        try:
            self.process.wait(ENDS_IN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in [self._ask, self._answer, self._pidfd, *self._theirs]:
            os.close(end)
        self._theirs = []
        self._printed.close()


@dataclass
class Found:
    """What is known of a contender after the rounds."""

    medians: list[float] = field(default_factory=list)  # seconds of a step, one per round
    losses: list[float] = field(default_factory=list)  # of the first step, then of the last of every turn
    refused: str | None = None  # why it does not apply
    failed: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Pace:
    """How long a comparison may go on."""

    seconds: float  # in all, from the beginning
    rounds: int | None = None  # as many, however long
    steps: int | None = None  # per turn

    ROUNDS = 12  # what steps per turn are chosen for
    FEWEST = 3  # rounds, however long they take
    MOST = 40  # steps of a turn

    def steps_of(self, step_seconds: Sequence[float], left: float) -> int:
        """Steps of a turn. step_seconds: of every contender; left: seconds for all rounds."""
        if self.steps is not None:
            return self.steps
        affordable = left / (self.rounds or self.ROUNDS) / max(sum(step_seconds), 1e-9)
        return max(1, min(self.MOST, int(affordable) - WARM))

    def goes_on(self, done: int, longest: float, left: float) -> bool:
        """Whether another round is due. longest: seconds of the longest so far."""
        if self.rounds is not None:
            return done < self.rounds
        return done < self.FEWEST or longest < left


Say = Callable[[str], None]


def race(
    makers: Mapping[str, Callable[[], Contender]], pace: Pace, say: Say = lambda text: None
) -> dict[str, Found]:
    """Let all of them take turns. Those that do not apply or fail drop out; what is left behind is nothing."""
    deadline = time.monotonic() + pace.seconds
    found = {name: Found() for name in makers}
    running: dict[str, Contender] = {}
    try:
        for name, make in makers.items():
            running[name] = make()
        for name in list(running):
            say(f"waiting for {name}")
            with _dropping_out(running, found, name):
                up = running[name].come_up()
                found[name].losses.append(up["loss"])
                found[name].note = up.get("note", "")
        trial = {name: seconds for name in list(running) if (seconds := _turn(running, found, name, 1, ANSWERS_IN))}
        steps = pace.steps_of(list(trial.values()), deadline - time.monotonic())
        done, longest = 0, 0.0
        while running and pace.goes_on(done, longest, deadline - time.monotonic()):
            began = time.monotonic()
            say(f"round {done + 1}, {steps} steps each")
            for name in order_of(list(running), done):
                patience = ANSWERS_IN + 20 * trial[name] * (steps + WARM)
                if (median := _turn(running, found, name, steps, patience)) is not None:
                    found[name].medians.append(median)
            done, longest = done + 1, max(longest, time.monotonic() - began)
    finally:
        for contender in running.values():
            contender.stop()
    return found


def order_of(names: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: shuffled, and the same in every comparison of as many."""
    order = list(names)
    random.Random(number).shuffle(order)
    return order


def _turn(
    running: dict[str, Contender], found: Mapping[str, Found], name: str, steps: int, patience: float
) -> float | None:
    """The median of a turn; None when the contender dropped out."""
    with _dropping_out(running, found, name):
        seconds, loss = running[name].turn(steps, patience)
        found[name].losses.append(loss)
        return statistics.median(seconds)
    return None


@contextlib.contextmanager
def _dropping_out(running: dict[str, Contender], found: Mapping[str, Found], name: str) -> Iterator[None]:
    """Inside, a contender that fails is noted and stopped; the others go on."""
    try:
        yield
    except DoesNotApply as error:
        found[name].refused = str(error)
        running.pop(name).stop()
    except Failed as error:
        found[name].failed = str(error)
        running.pop(name).stop()


def python(module: str) -> list[str]:
    """The command of a contender whose `main` is in a module of this package, from wherever that was imported."""
    root = Path(__file__).parents[2]
    code = f"import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; main(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", code, str(root)]
