"""Jobs of which one worker gets slower while they train."""

import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn, optim
from torch.utils.data import Dataset

import samestep

ROWS, FEATURES, BATCH = 256, 16, 64
PRESENT = multiprocessing.Value("i", 0)  # made before workers are forked: all of them see it
DONE = multiprocessing.Value("i", 0)  # shards of the worker that is never slow
OWN = threading.local()


def number() -> int:
    """Of this worker, in the order in which they came to ask."""
    if getattr(OWN, "pid", None) != os.getpid():
        with PRESENT.get_lock():
            OWN.pid, OWN.number = os.getpid(), PRESENT.value
            PRESENT.value += 1
    return int(OWN.number)


class Slowing(nn.Module):
    """A shard takes `usual` seconds; after `after` of its own one worker takes `slow` times as long, until the first
    other one has done `until`."""

    def __init__(self, after: int, until: int, slow: float, usual: float, *, normed: bool) -> None:
        super().__init__()
        norm = [nn.BatchNorm1d(16)] if normed else []
        self.body = nn.Sequential(nn.Linear(FEATURES, 16), *norm, nn.ReLU(), nn.Linear(16, 4))
        self.after, self.until, self.slow, self.usual, self.calls = after, until, slow, usual, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        which = number() if self.training and self.calls > self.after else None
        if which == 0:
            DONE.value += 1
        is_slow = which == 1 and self.after + DONE.value <= self.until
        time.sleep(self.usual * (self.slow if is_slow else 1.0))
        return self.body(x)  # type: ignore[no-any-return]


class Samples(Dataset[Any]):
    def __init__(self, columns: tuple[Tensor, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int) -> Any:
        return tuple(column[row] + torch.randn(FEATURES) * 0.1 if column.dim() > 1 else column[row]
                     for column in self.columns)  # fmt: skip


class NotesProcesses:
    """Most children that any worker process of this run had at once, its loaders, after every step."""

    def __init__(self, path: str) -> None:
        self._path, self._most = Path(path), 0

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        workers = psutil.Process(os.getppid()).children()
        self._most = max(self._most, *(len(worker.children()) for worker in workers))
        self._path.write_text(str(self._most))


def slowing(
    after: int = 40,
    until: int = 1_000_000,
    slow: float = 12.0,  # times: other load on a busy machine must not hide it
    usual: float = 0.002,
    steps: int = 32,
    normed: bool = False,
    loaders: int = 0,
    notes: str = "",
) -> samestep.Job:
    """after, until: shards of a worker and of the other; with two workers of four shards each, 40 are ten steps."""
    generator = torch.Generator().manual_seed(3)
    columns = torch.randn(ROWS, FEATURES, generator=generator), torch.randint(0, 4, (ROWS,), generator=generator)
    return samestep.Job(
        model=lambda: Slowing(after, until, slow, usual, normed=normed),
        data=Samples(columns) if loaders else columns,
        num_loader_workers=loaders,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.AdamW(params, 1e-2),
        clip_grad_norm=1.0,
        batch_size=BATCH,
        shards=8,
        steps=steps,
        callbacks=[NotesProcesses(notes)] if notes else [],
    )
