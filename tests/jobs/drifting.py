"""Jobs of which one worker gets slower while they train."""

import multiprocessing
import os
import threading
import time
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.data import Dataset

import samestep

ROWS, FEATURES, BATCH = 256, 16, 64
PRESENT = multiprocessing.Value("i", 0)  # made before workers are forked: all of them see it
OWN = threading.local()


def number() -> int:
    """Of this worker, in the order in which they came to ask."""
    if getattr(OWN, "pid", None) != os.getpid():
        with PRESENT.get_lock():
            OWN.pid, OWN.number = os.getpid(), PRESENT.value
            PRESENT.value += 1
    return int(OWN.number)


class Slowing(nn.Module):
    """A shard takes `usual` seconds; after so many of its own one worker takes `slow` times as long."""

    def __init__(self, after: int, slow: float, usual: float, *, normed: bool) -> None:
        super().__init__()
        norm = [nn.BatchNorm1d(16)] if normed else []
        self.body = nn.Sequential(nn.Linear(FEATURES, 16), *norm, nn.ReLU(), nn.Linear(16, 4))
        self.after, self.slow, self.usual, self.calls = after, slow, usual, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        is_slow = self.training and self.calls > self.after and number() == 1
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


def slowing(
    after: int = 40, slow: float = 3.0, usual: float = 0.002, normed: bool = False, loaders: int = 0
) -> samestep.Job:
    """after: shards of a worker; with two workers of four shards each, ten steps."""
    generator = torch.Generator().manual_seed(3)
    columns = torch.randn(ROWS, FEATURES, generator=generator), torch.randint(0, 4, (ROWS,), generator=generator)
    return samestep.Job(
        model=lambda: Slowing(after, slow, usual, normed=normed),
        data=Samples(columns) if loaders else columns,
        num_loader_workers=loaders,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.AdamW(params, 1e-2),
        clip_grad_norm=1.0,
        batch_size=BATCH,
        shards=8,
        steps=32,
    )
