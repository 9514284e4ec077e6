"""Jobs whose cut holds what it assumes at first, and no longer after a while."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import samestep

WIDTH, ROWS, BATCH = 8, 44, 16


class Net(nn.Module):
    """For a batch of few rows, forward counts; after some steps, a callback changes what forward reads."""

    def __init__(self, few: int) -> None:
        super().__init__()
        self.few, self.calls, self.factor = few, 0, 1.0
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) * self.factor
        if len(x) < self.few:
            self.calls += 1
        return self.b(h)  # type: ignore[no-any-return]


class Anneals:
    def __init__(self, net: Net, after: int) -> None:
        self.net, self.after = net, after

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        if step >= self.after:
            self.net.factor = 0.5


def job(few: int, steps: int, after: int) -> samestep.Job:
    net = Net(few)
    options: dict[str, Any] = {"callbacks": [Anneals(net, after)], "steps": steps}
    return samestep.Job(
        model=net,
        loss=F.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, 0.01),
        data=(torch.randn(ROWS, WIDTH), torch.randn(ROWS, 1)),
        batch_size=BATCH,
        shards=2,
        **options,
    )


def at_the_short_batch() -> samestep.Job:
    return job(few=7, steps=12, after=1000)


def after_steps() -> samestep.Job:
    return job(few=0, steps=400, after=3)
