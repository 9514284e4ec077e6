"""A model of benchmarks/models.py, one of whose two workers gets a share of a core from step 50 on."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import psutil

import samestep
from models import MODELS, optimizer


def slow_down(pid: int, group: Path) -> None:
    """Put all threads of a process into a control group."""
    for thread in psutil.Process(pid).threads():
        (group / "tasks").write_text(str(thread.id))


class Slows:
    """Puts the other worker of this run (or, alone, this one) into a control group before step `at`, and keeps the
    time of every step. other: a file that is made when it is time, for somebody who can and removes it then: inside of
    a test host, control groups are not to be seen."""

    def __init__(self, group: str, at: int, times: str, other: str) -> None:
        self._group, self._at, self._times, self._other = group, at, Path(times), other
        self._ends: list[float] = []

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        self._ends.append(time.perf_counter())
        if self._group and step + 1 == self._at:
            if self._other:
                Path(self._other).touch()
                while Path(self._other).exists():
                    time.sleep(0.001)
                return
            others = [p.pid for p in psutil.Process(os.getppid()).children() if p.pid != os.getpid()]
            for pid in others or [os.getpid()]:
                slow_down(pid, Path(self._group))

    def close(self) -> None:
        self._times.write_text(json.dumps(self._ends))


def job(
    model: str, times: str, shards: int = 8, steps: int = 150, group: str = "", at: int = 50, other: str = ""
) -> samestep.Job:
    build, data, loss, batch_size = MODELS[model]
    callbacks: list[Any] = [Slows(group, at, times, other)]
    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=batch_size, shards=shards, steps=steps,
        callbacks=callbacks,
    )  # fmt: skip
