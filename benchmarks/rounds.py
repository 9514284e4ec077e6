"""Contenders that take turns: each keeps its processes, steps when asked, and sleeps in between.

A contender is a command. It says `ready` on the file it writes to, then answers every `N` it reads
with the seconds of N steps (or its other measurements of each) as one JSON list. Rounds interleave them,
so that other load on the machine affects all of them equally.
"""

import argparse
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM = 2  # steps at the head of a round that do not count: the others' data are still in the caches


class Turns:
    """The contender's side: call `begin()`, then `step()` after every step."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._asked = 0
        self._seconds: list[Any] = []
        self._mark = 0.0
        self._reader: Any = None

    def begin(self) -> None:
        self._writer = (self._folder / "answer").open("w", buffering=1)
        self._reader = (self._folder / "ask").open()
        print("ready", file=self._writer)
        self._wait()

    def step(self, measured: Any = None) -> None:
        """Answer with `measured`, or with the seconds since the last step."""
        now = time.perf_counter()
        self._seconds.append(now - self._mark if measured is None else measured)
        self._mark = now
        if len(self._seconds) == self._asked:
            print(json.dumps(self._seconds), file=self._writer)
            self._wait()

    def _wait(self) -> None:
        line = self._reader.readline()
        if not line:
            os._exit(0)
        self._asked, self._seconds = int(line), []
        self._mark = time.perf_counter()


@contextlib.contextmanager
def until_peer_leaves() -> Iterator[None]:
    """Let the other ranks end quietly: rank 0 closes its connections when there are no more rounds."""
    try:
        yield
    except RuntimeError as error:
        if "closed by peer" not in str(error):
            raise


@dataclass
class Contender:
    """The orchestrator's side."""

    name: str
    command: list[str]
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()))
    medians: list[float] = field(default_factory=list)
    _asks: Any = None

    def start(self) -> None:
        for name in ("ask", "answer"):
            os.mkfifo(self.folder / name)
        self.process = self.launch([*self.command, str(self.folder)])
        self.meet()

    def launch(self, command: list[str]) -> "subprocess.Popen[Any]":
        return subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def meet(self) -> None:
        """Wait until it is ready, as long as it lives. Opening only one end of a pipe would block forever."""
        answers = os.open(self.folder / "answer", os.O_RDONLY | os.O_NONBLOCK)
        self._asks = os.fdopen(os.open(self.folder / "ask", os.O_RDWR), "w", buffering=1)
        while not select.select([answers], [], [], 1)[0]:
            assert self.process.poll() is None, f"{self.name} ended before it was ready"
        os.set_blocking(answers, True)
        self._answers = os.fdopen(answers)
        assert self._answers.readline() == "ready\n", f"{self.name} did not come up"

    def round(self, steps: int) -> None:
        self.medians.append(statistics.median(self.answer(steps)))

    def answer(self, steps: int) -> list[Any]:
        """Measurements of each of the next steps."""
        print(steps + WARM, file=self._asks)
        return json.loads(self._answers.readline())[WARM:]

    def stop(self) -> None:
        if self._asks is not None:
            self._asks.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for name in ("ask", "answer"):
            (self.folder / name).unlink()
        self.folder.rmdir()


def race(contenders: list[Contender], rounds: int, steps: int, warm_rounds: int = 1) -> None:
    """Fill every contender's `medians`, one per round."""
    started = []
    try:
        for contender in contenders:
            started.append(contender)
            contender.start()
        order = list(contenders)
        for number in range(rounds + warm_rounds):
            random.Random(number).shuffle(order)
            for contender in order:
                contender.round(steps)
        for contender in contenders:
            del contender.medians[:warm_rounds]
    finally:
        for contender in started:
            contender.stop()


def contender(name: str, model: str) -> Contender:
    """Contender of `step_time/contender.py` with the name "KIND OPTION"."""
    script = Path(__file__).resolve().parent / "step_time" / "contender.py"
    return Contender(name, [sys.executable, str(script), *name.split()[:1], model, *name.split()[1:]])


@dataclass
class Question:
    """Contenders that take turns on a model, and the pairs whose steps are compared."""

    model: str
    contenders: list[str]
    pairs: list[tuple[str, str]]
    rounds: int
    steps: int  # per round


def ask(
    questions: Mapping[str, Question], make: Callable[[str, str], Contender] = contender
) -> Iterable[tuple[str, dict[str, Contender]]]:
    """Answer the questions of the command line, or all questions, each by a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(questions)}; default: all")
    parser.add_argument("--rounds", type=int, help="default: the question's own")
    parser.add_argument("--steps", type=int, help="per round; default: the question's own")
    asked = parser.parse_args()
    print(machine(), "\n")
    for name in asked.questions or list(questions):
        question = questions[name]
        rounds, steps = asked.rounds or question.rounds, asked.steps or question.steps
        found = {one: make(one, question.model) for one in question.contenders}
        race(list(found.values()), rounds, steps)
        print(f"**{name}**, {rounds} rounds of {steps} steps\n")
        print_tables(found, question.pairs)
        yield name, found


def print_tables(found: Mapping[str, Contender], pairs: Iterable[tuple[str, str]]) -> None:
    print("| contender | step, ms |\n|---|--:|")
    for name, one in found.items():
        print(f"| {name} | {spread(one.medians, lambda s: f'{s * 1e3:.2f}')} |")
    print("\n| ratio | per round |\n|---|--:|")
    for a, b in pairs:
        print(f"| {a} / {b} | {spread(ratios(found[a], found[b]), lambda r: f'{r:.3f}')} |")
    print(flush=True)


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Median, and the quartiles in brackets."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{show(statistics.median(values))} ({show(low)}-{show(high)})"


def ratios(a: Contender, b: Contender) -> list[float]:
    """Round by round."""
    return [x / y for x, y in zip(a.medians, b.medians, strict=True)]


def machine() -> str:
    """Line with date, machine and versions of a table."""
    import platform

    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    python = sys.version.split()[0]
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python {python}, torch {torch.__version__}"
