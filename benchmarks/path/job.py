"""A small job whose model notes, in the worker that runs it, which files of samestep a step enters."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

import samestep

SRC = Path(samestep.__file__).parent
BEGINS = 14  # the step that is noted: the first ones differ from those that follow
CALLS = 2  # of forward per step: a worker of two has two of the four shards


class StepTrace:
    """The code that one `Trainer.step` enters, as (file, function) pairs."""

    def __init__(self) -> None:
        self.entered: set[CodeType] = set()
        self._step: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and self._step is None and code.co_qualname == "Training.step":
            self._step = frame
        if event == "return" and frame is self._step:
            self._step = None
        if self._step is not None and event == "call" and code.co_filename.startswith(str(SRC)):
            self.entered.add(code)

    def as_json(self) -> str:
        found = sorted(
            {(str(Path(c.co_filename).relative_to(SRC)), c.co_qualname, c.co_firstlineno) for c in self.entered}
        )
        return json.dumps(found)


class Traced(nn.Sequential):
    """Linear, ReLU, Linear; writes what the step of number `BEGINS` entered to `folder`, a file per process."""

    def __init__(self, folder: str) -> None:
        super().__init__(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
        self.folder, self.calls, self.trace = folder, 0, StepTrace()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            step, first = divmod(self.calls, CALLS)
            if step == BEGINS - 1 and first == 0:
                sys.setprofile(self.trace)
            if step == BEGINS + 1 and first == 0:
                sys.setprofile(None)
                torch_free = Path(self.folder) / f"{id(self)}-{self._pid()}.json"
                torch_free.write_text(self.trace.as_json())
            self.calls += 1
        return super().forward(x)

    def _pid(self) -> int:
        import os

        return os.getpid()


def job(folder: str) -> samestep.Job:
    x = torch.randn(2048, 16)
    model: Callable[[], nn.Module] = lambda: Traced(folder)  # noqa: E731
    return samestep.Job(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, 0.05, momentum=0.9),
        data=(x, (x.sum(1) > 0).long()),
        batch_size=64,
        epochs=1,
    )
