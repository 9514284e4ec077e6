"""A small job whose callback notes which code of samestep the steps of worker 0 enter."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

import samestep

SRC = Path(samestep.__file__).parent
BATCHES = 40  # per epoch; no step has both an audit, every 32 steps, and an epoch's end
EVERY = 4  # steps of which one is traced: such a step takes longer, and a worker that is slow for long loses shards
WATCH = str(SRC / "audit" / "memory_watch.py")


class StepTraces:
    """The functions that calls of `Training.step` enter; written to a file when the run ends.

    What audits do to watch memory at rest is kept apart: how often they do depends on how busy the machine is.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._step: FrameType | None = None  # of the step under way
        self._watch: FrameType | None = None  # inside it, of the watch under way
        self._entered: set[CodeType] = set()
        self._watched: set[CodeType] = set()
        self._steps: dict[int, dict[str, list[tuple[str, str]]]] = {}

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """The job's callback: called after every step."""
        sys.setprofile(self._note if (step + 2) % EVERY == 0 else None)
        if self._entered:
            self._steps[step] = {"entered": named(self._entered), "watched": named(self._watched)}
        self._entered, self._watched = set(), set()

    def close(self) -> None:
        sys.setprofile(None)
        self._file.write_text(json.dumps(self._steps))

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call":
            if self._step is None and code.co_qualname == "Training.step":
                self._step = frame
            if self._step is not None and self._watch is None and code.co_filename == WATCH:
                self._watch = frame
            if self._step is not None and code.co_filename.startswith(str(SRC)):
                (self._entered if self._watch is None else self._watched).add(code)
        elif event == "return":
            self._step = None if frame is self._step else self._step
            self._watch = None if frame is self._watch else self._watch


def named(entered: set[CodeType]) -> list[tuple[str, str]]:
    """Files, below samestep, and functions."""
    return sorted({(str(Path(code.co_filename).relative_to(SRC)), code.co_qualname) for code in entered})


def job(file: str) -> samestep.Job:
    """file: gets the functions of each step, as JSON."""
    x = torch.randn(
        (BATCHES - 1) * 64 + 32, 16
    )  # the last batch is short: its steps have a list of actions of their own
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, 0.05, momentum=0.9),
        data=(x, (x.sum(1) > 0).long()),
        batch_size=64,
        epochs=3,
        callbacks=[StepTraces(file)],
    )
