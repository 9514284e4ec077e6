"""Jobs that go wrong while training: in one worker, at one step."""

import os
import signal
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import Dataset

import samestep

ROWS, BATCH, FEATURES, CLASSES = 128, 16, 6, 3
STEP, WORKER = 5, 1  # where it happens; with 2 workers and 4 shards, worker 1 computes shards 2 and 3
ROW = STEP * BATCH + BATCH // 2 + 1  # a row of that step and shard 2, without shuffling


class Rows(Dataset[Any]):
    """Rows that know their number; the one at ROW goes wrong in one way or another."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.x, self.y = torch.randn(ROWS, FEATURES), torch.randint(0, CLASSES, (ROWS,))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        x = self.x[row]
        if row == ROW:
            match self.fault:
                case "raises":
                    raise ValueError(f"row {row} is torn")
                case "raises without words":
                    raise KeyError
                case "raises in many lines":
                    raise ValueError("first line\nsecond line\n" + "日本語" * 20_000)
                case "shape":
                    x = x[:-1]
                case "nan":
                    x = x * float("nan")
                case "infinite":
                    x = x * float("inf")
                case "exits" | "exits with 0" | "is killed" | "forward" | "gradient":
                    x = torch.full_like(x, 1e3)  # seen by forward
        return x, self.y[row]


class Net(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.used = nn.Linear(FEATURES, CLASSES)
        self.forgotten = nn.Linear(2, 2) if fault == "forgotten" else None

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 1e3).any()):
            match self.fault:
                case "exits":
                    os._exit(7)
                case "exits with 0":
                    os._exit(0)
                case "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "forward":
                    raise RuntimeError("no such thing")
                case "gradient":  # of a root at zero
                    return self.used(x) + (self.used.weight.sum() * 0).sqrt() * 0  # type: ignore[no-any-return]
        return self.used(x)  # type: ignore[no-any-return]


def job(fault: str = "none", loaders: int = 0, steps: int = 8) -> samestep.Job:
    return samestep.Job(
        model=lambda: Net(fault),
        loss=F.cross_entropy,
        optimizer=lambda params: SGD(params, 0.1),
        data=Rows(fault),
        num_loader_workers=loaders,
        batch_size=BATCH,
        shuffle=False,
        shards=4,
        steps=steps,
    )


def fails_early() -> samestep.Job:
    raise FileNotFoundError("digits.csv is not here")


def many_unused() -> samestep.Job:
    good = job()

    def model() -> nn.Module:
        net = Net("forgotten")
        net.more = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(6))
        return net

    good.model = model
    return good
