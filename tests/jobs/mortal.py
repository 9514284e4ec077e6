"""One worker of those that a launcher has started ends in the middle of a step."""

import os
import signal
from dataclasses import replace

import grids
from torch import Tensor

import samestep

CALLS = 10  # of forward, so in the third step or later on any number of workers up to 3


class Mortal(grids.MLP):
    """victim: the worker that ends; only before the launcher has restarted it. how: the signal, or an error."""

    def __init__(self, victim: int, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
        self.dies = first and rank == str(victim)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.dies and self.calls == CALLS:
            if self.how == "error":
                raise ValueError("the reason")
            os.kill(os.getpid(), getattr(signal, self.how))
        return super().forward(x)


def job(victim: int, how: str) -> samestep.Job:
    return replace(grids.mlp(), model=lambda: Mortal(victim, how))
