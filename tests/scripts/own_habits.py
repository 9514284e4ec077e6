"""Habits of loops under other libraries: `own_habits.py WHAT`. Each worker prints losses, or what it was refused."""

import os
import sys

import numpy as np
import torch
from torch import Tensor, nn

import samestep

WHAT, RANK = sys.argv[1], int(os.environ.get("RANK", 0))
RATES: list[torch.optim.Optimizer] = []


def optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    RATES.append(torch.optim.SGD(params, 0.1))
    return RATES[-1]


def job() -> samestep.Job:
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1)),
        loss=nn.MSELoss(),
        optimizer=optimizer,
        batch_size=16,
        shards=4,
    )


def batch(generator: torch.Generator | None, rows: int = 16) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def main() -> None:
    trainer = samestep.Trainer(job, plan=sys.argv[2] if len(sys.argv) > 2 else "data", timeout=60)
    drawn = RANK if WHAT == "rows of ones own" else 0
    generator = None if WHAT == "global generator" else torch.Generator().manual_seed(drawn)
    torch.manual_seed(0)
    np.random.seed(1)
    for step in range(3):
        x, y = batch(generator, 15 if WHAT == "a short batch" and RANK == 1 and step == 2 else 16)
        if WHAT == "sorted on one" and RANK == 1:
            x, y = x.flip(0), y.flip(0)
        if WHAT == "a rate" and RANK == 1 and step == 2:
            RATES[0].param_groups[0]["lr"] = 0.05
        if WHAT == "evaluated on one" and RANK == 1 and step == 2:
            trainer.model.eval()
        print(trainer.step((x, y)).loss, np.random.rand(), flush=True)


if __name__ == "__main__":
    try:
        main()
    except samestep.SamestepError as error:
        print(type(error).__name__, error)
