"""The GPT that `local.py` trains: bytes of Moby-Dick, 128 at a time, the last tenth of the book held out."""

import gzip
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import lr_scheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import samestep
from models import GPT, token_loss

TEXT = Path(__file__).resolve().parents[2] / "examples" / "data" / "moby-dick.txt.gz"
LENGTH = 128  # bytes per row
HELD_OUT = 512  # rows


def rows() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((x, y) to train on, (x, y) held out). Each (rows, LENGTH), y one byte later."""
    text = torch.frombuffer(bytearray(gzip.decompress(TEXT.read_bytes())), dtype=torch.uint8).long()
    count = (len(text) - 1) // LENGTH
    x, y = text[: count * LENGTH].view(count, LENGTH), text[1 : count * LENGTH + 1].view(count, LENGTH)
    train = count - count // 10
    return (x[:train], y[:train]), (x[train:][:HELD_OUT], y[train:][:HELD_OUT])


class Log:
    """Writer of one JSON line per step whose loss has become known: number, loss, seconds since the start."""

    def __init__(self, file: str) -> None:
        self._file = Path(file).open("w")  # noqa: SIM115 - closed with the run
        self._began = time.perf_counter()

    def __call__(self, step: int, loss: float, metrics: Any) -> None:
        self._file.write(json.dumps([step, loss, time.perf_counter() - self._began]) + "\n")

    def close(self) -> None:
        self._file.close()


def schedule(steps: int, warm: int) -> Any:
    """Learning-rate factor: up for `warm` steps, then down to a tenth along a cosine."""

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))

    return lambda optimizer: lr_scheduler.LambdaLR(optimizer, share)


def job(
    log: str = "", batch: int = 16, steps: int = 600, lr: float = 1e-3, warm: int = 50, shards: int = 4
) -> samestep.Job:
    train, held_out = rows()
    return samestep.Job(
        model=GPT,
        loss=token_loss,
        optimizer=lambda params: optim.AdamW(params, lr, weight_decay=0.1, fused=True),
        scheduler=schedule(steps, warm),
        clip_grad_norm=1.0,
        data=train,
        evaluate=held_out,
        metrics={},
        batch_size=batch,
        shards=shards,
        steps=steps,
        epochs=99,
        drop_last=True,
        callbacks=[Log(log)] if log else [],
    )
