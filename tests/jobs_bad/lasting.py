"""A run that lasts until it is stopped, and leaves a note in a file after every step."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import samestep


class Notes:
    """A callback that writes the number of steps done."""

    def __init__(self, file: Path | str) -> None:
        self.file = Path(file)  # text when it comes from Python, whose settings are plain values

    def __call__(self, step: int, loss: float, metrics: Any) -> None:
        new = self.file.with_name(self.file.name + ".new")  # a kill between two writes leaves the old note whole
        new.write_text(str(step + 1))
        new.replace(self.file)


def job(notes: Path = Path("notes"), hidden: int = 16, loaders: int = 0) -> samestep.Job:
    x, y = torch.randn(640, 8), torch.randint(0, 4, (640,))
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 4)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: SGD(params, 0.01, momentum=0.9),
        data=TensorDataset(x, y) if loaders else (x, y),
        num_loader_workers=loaders,
        batch_size=16,
        shards=2,
        steps=1_000_000,
        callbacks=[Notes(notes)],
    )


def slow_to_build(notes: Path = Path("notes")) -> samestep.Job:
    """Never comes to an end, as a download may not."""
    notes.write_text("building")
    while True:
        time.sleep(1)
