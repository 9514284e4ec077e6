"""Small jobs whose delayed gradients a plain loop can follow."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn, optim

import samestep
from jobs import in_order
from jobs.in_order import perceptron
from samestep.parallel.execution.executor import StepState
from samestep.parallel.execution.stale_executor import StaleExecutor
from samestep.schedule import actions

ROWS, SEED, STEPS = 56, 5, 9  # the fourth step of an epoch has 8 rows


def sgd(params: list[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.01)


def adam(params: list[nn.Parameter]) -> optim.Optimizer:
    return optim.Adam(params, 0.01)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adagrad": lambda params: optim.Adagrad(params, 0.05)}


class Sometimes(nn.Module):
    """`extra` has a gradient in the steps in which some row of the batch has its mark, `never` in none."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra, self.never = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(12, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, mark = self.body(x), x[:, :1] > 1.9
        if bool(mark.any()):
            h = h + mark * self.extra(x)
        return self.head(torch.tanh(h))


def counted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Only rows that are marked count, of each batch another number: a sum, and how many."""
    x, y = batch
    counts = (x[:, 1] > 0).float()
    return (nn.functional.cross_entropy(model(x), y, reduction="none") * counts).sum(), counts.sum()


def net(kind: str) -> nn.Module:
    return Sometimes() if kind == "sometimes" else perceptron(norm=kind == "norm")


def job(
    kind: str = "plain", optimizer: str = "sgd", clip: float = 0.0, falls: bool = True, steps: int = STEPS,
    sync: str = "exact", sync_batchnorm: bool = False,
) -> samestep.Job:  # fmt: skip
    usual = in_order.job(
        model=partial(net, kind),
        optimizer=OPTIMIZERS[optimizer],
        rows=ROWS,
        seed=SEED,
        steps=steps,
        clip=clip,
        decay=0.8 if falls else None,
    )
    found = replace(usual, sync=sync, sync_batchnorm=sync_batchnorm)
    return replace(found, loss=None, forward=counted) if kind == "counted" else found


def forgetful() -> samestep.Job:
    """One worker counts one update less than it makes, as if it had not come to it: a bug on purpose."""
    real = StaleExecutor.step

    def step(self: StaleExecutor, action: actions.Update, state: StepState) -> None:
        real(self, action, state)
        if state.number == 2 and self.transport.rank == 1:
            self.bound.versions[1] -= 1

    StaleExecutor.step = step  # type: ignore[method-assign]
    return job(sync="stale(1)")
