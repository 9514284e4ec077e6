"""A small job whose callback notes which code of samestep each step of worker 0 enters."""

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
BATCH, WIDTH = 8, 512  # rows, inputs: with more rows or fewer weights, audits look at memory in every step
EVERY = 4  # steps of which one is traced: such a step takes longer, and a worker that is slow for long loses shards


class StepTraces:
    """The functions that calls of `Training.step` enter; written to a file when the run ends."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._outermost: FrameType | None = None  # of the step under way
        self._entered: set[CodeType] = set()
        self._steps: dict[int, list[tuple[str, str]]] = {}

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """The job's callback: called after every step."""
        sys.setprofile(self._note if (step + 2) % EVERY == 0 else None)
        if self._entered:
            found = {(str(Path(code.co_filename).relative_to(SRC)), code.co_qualname) for code in self._entered}
            self._steps[step] = sorted(found)
        self._entered = set()

    def close(self) -> None:
        sys.setprofile(None)
        self._file.write_text(json.dumps(self._steps))

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and self._outermost is None and code.co_qualname == "Training.step":
            self._outermost = frame
        if event == "call" and self._outermost is not None and code.co_filename.startswith(str(SRC)):
            self._entered.add(code)
        if event == "return" and frame is self._outermost:
            self._outermost = None


def job(file: str) -> samestep.Job:
    """file: gets the functions of each step, as JSON."""
    x = torch.randn(BATCHES * BATCH, WIDTH)
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(WIDTH, 2048), nn.ReLU(), nn.Linear(2048, 4)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, 0.05, momentum=0.9),
        data=(x, (x.sum(1) > 0).long()),
        batch_size=BATCH,
        shards=4,
        epochs=2,
        callbacks=[StepTraces(file)],
    )
