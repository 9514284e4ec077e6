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
from models import MODELS, optimizer

import samestep


class Slows:
    """Puts the other worker of this run (or, alone, this one) into a control group before step `at`, and keeps the
    time of every step."""

    def __init__(self, group: str, at: int, times: str) -> None:
        self._group, self._at, self._times = group, at, Path(times)
        self._ends: list[float] = []

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        self._ends.append(time.perf_counter())
        if self._group and step + 1 == self._at:
            others = [p.pid for p in psutil.Process(os.getppid()).children() if p.pid != os.getpid()]
            for pid in others or [os.getpid()]:
                for thread in psutil.Process(pid).threads():
                    (Path(self._group) / "tasks").write_text(str(thread.id))

    def close(self) -> None:
        self._times.write_text(json.dumps(self._ends))


def job(model: str, times: str, shards: int = 8, steps: int = 150, group: str = "", at: int = 50) -> samestep.Job:
    build, data, loss, batch_size = MODELS[model]
    callbacks: list[Any] = [Slows(group, at, times)]
    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=batch_size, shards=shards, steps=steps,
        callbacks=callbacks,
    )  # fmt: skip
