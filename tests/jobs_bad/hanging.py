"""Jobs that come to a standstill while training: in one worker, at one step, in one way or another."""

import ctypes
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import Dataset

import samestep

ROWS, BATCH, FEATURES, CLASSES = 512, 16, 6, 3
SHARD = 2  # whose worker it happens to: of 2 workers worker 1, of 4 workers worker 2
LONG = 300.0  # seconds; nobody waits for their end

MEMORY = 200_000_000  # bytes at a time


def late() -> None:
    time.sleep(LONG)


def long_loop() -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        pass


def compute(seconds: float) -> None:
    """So much processor time, however long it takes to get it."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def never() -> None:
    """A lock that nobody gives back."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def native_lock() -> None:
    """Native code waits for ever and holds the interpreter's lock."""
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.PyDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def native_loop() -> None:
    """Native code that computes, and holds the interpreter's lock."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def eats_memory() -> None:
    kept = []
    while True:
        kept.append(b"x" * MEMORY)


FAULTS = {
    "late": late,
    "running": long_loop,
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "dead": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "lock": never,
    "native lock": native_lock,
    "native loop": native_loop,
    "memory": eats_memory,
}


def note_time(file: str) -> None:
    """When it begins, for those who measure."""
    if file and not Path(file).exists():
        Path(file).write_text(repr(time.monotonic()))


class Rows(Dataset[Any]):
    """One row of step `step` makes whoever computes it come to a standstill, or slow from there on."""

    def __init__(self, fault: str, step: int, note: str, shards: int) -> None:
        self.fault, self.note = fault, note
        self.row = step * BATCH + SHARD * BATCH // shards + 1
        self.x, self.y = torch.randn(ROWS, FEATURES), torch.randint(0, CLASSES, (ROWS,))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        x = self.x[row]
        if row == self.row:
            note_time(self.note if self.fault != "none" else "")
            if self.fault == "exception":
                raise ValueError(f"row {row} is torn")
            if self.fault == "late in data":
                time.sleep(LONG)
            if self.fault == "loader stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            x = torch.full_like(x, 1e3)  # seen by forward
        return x, self.y[row]


class Net(nn.Module):
    """pace: seconds of forward; as processor time where nothing is to go wrong."""

    def __init__(self, fault: str, pace: float) -> None:
        super().__init__()
        self.fault, self.pace, self.is_slow = fault, pace, False
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "none":
            compute(self.pace)
        else:
            time.sleep(10 * self.pace if self.is_slow else self.pace)
        if bool((x == 1e3).any()):
            self.is_slow = self.fault == "slow"
            FAULTS.get(self.fault, lambda: None)()
        return self.layer(x.clamp(-10, 10))  # type: ignore[no-any-return]


def job(
    fault: str = "none",
    step: int = 3,
    loaders: int = 0,
    steps: int = 32,
    pace: float = 0.0,
    shards: int = 4,
    note: str = "",
) -> samestep.Job:
    return samestep.Job(
        model=lambda: Net(fault, pace),
        loss=F.cross_entropy,
        optimizer=lambda params: SGD(params, 0.01),
        data=Rows(fault, step, note, shards),
        num_loader_workers=loaders,
        batch_size=BATCH,
        shuffle=False,
        shards=shards,
        steps=steps,
    )


def evaluated() -> samestep.Job:
    """For loops of one's own."""
    good = job()
    good.evaluate = (torch.randn(32, FEATURES), torch.randint(0, CLASSES, (32,)))
    return good
