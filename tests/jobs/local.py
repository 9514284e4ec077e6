"""Small jobs whose local steps a plain loop can follow."""

from functools import partial

import torch
from torch import nn, optim

import samestep
from jobs import in_order
from jobs.in_order import BATCH, SHARDS, numbers, perceptron

ROWS, SEED, STEPS = 64, 3, 10


def job(
    lr: float = 0.1, momentum: float = 0.9, clip: float = 0.0, falls: bool = True, norm: bool = True, steps: int = STEPS
) -> samestep.Job:
    return in_order.job(
        model=partial(perceptron, norm),
        optimizer=lambda params: optim.SGD(params, lr, momentum=momentum),
        rows=ROWS,
        seed=SEED,
        steps=steps,
        clip=clip,
        decay=0.9 if falls else None,
    )


def wide(steps: int = 8) -> samestep.Job:
    """59,658 parameters, beside which records are small."""
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(64, 800), nn.ReLU(), nn.Linear(800, 10)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.SGD(params, 0.05),
        data=(numbers(ROWS, 64, seed=SEED), torch.arange(ROWS) % 10),
        batch_size=BATCH,
        shards=SHARDS,
        steps=steps,
        epochs=99,
    )
