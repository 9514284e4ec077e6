"""Contenders that take turns: each keeps its processes, steps when asked, and sleeps in between.

A contender is a command. It says `ready` on the file it writes to, then answers every `N` it reads
with the seconds of N steps as one JSON list. Rounds interleave them, so that what else the machine
does hits all alike.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM = 2  # steps at the head of a round that do not count: the others' data are still in the caches


class Turns:
    """The contender's side: call `begin()`, then `step()` after every step."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._asked = 0
        self._seconds: list[float] = []
        self._mark = 0.0
        self._reader: Any = None

    def begin(self) -> None:
        self._writer = (self._folder / "answer").open("w", buffering=1)
        self._reader = (self._folder / "ask").open()
        print("ready", file=self._writer)
        self._wait()

    def step(self) -> None:
        now = time.perf_counter()
        self._seconds.append(now - self._mark)
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


@dataclass
class Contender:
    """The orchestrator's side."""

    name: str
    command: list[str]
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()))
    medians: list[float] = field(default_factory=list)

    def start(self) -> None:
        for name in ("ask", "answer"):
            os.mkfifo(self.folder / name)
        self.process = subprocess.Popen([*self.command, str(self.folder)], stdin=subprocess.DEVNULL)
        self._answers = (self.folder / "answer").open()
        self._asks = (self.folder / "ask").open("w", buffering=1)
        assert self._answers.readline() == "ready\n", f"{self.name} did not come up"

    def round(self, steps: int) -> None:
        print(steps + WARM, file=self._asks)
        self.medians.append(statistics.median(json.loads(self._answers.readline())[WARM:]))

    def stop(self) -> None:
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
    try:
        for contender in contenders:
            contender.start()
        order = list(contenders)
        for number in range(rounds + warm_rounds):
            random.Random(number).shuffle(order)
            for contender in order:
                contender.round(steps)
        for contender in contenders:
            del contender.medians[:warm_rounds]
    finally:
        for contender in contenders:
            contender.stop()


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Median, and the quartiles in brackets."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{show(statistics.median(values))} ({show(low)}-{show(high)})"


def ratios(a: Contender, b: Contender) -> list[float]:
    """Round by round."""
    return [x / y for x, y in zip(a.medians, b.medians, strict=True)]


def machine() -> str:
    """The line that says where a table comes from."""
    import platform

    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    python = sys.version.split()[0]
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python {python}, torch {torch.__version__}"
