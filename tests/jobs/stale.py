"""Small jobs whose delayed gradients can be followed by hand: rows in their order, nothing random in forward."""

from functools import partial

import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

import samestep
from samestep.parallel.executor import StepState
from samestep.parallel.stale import ExecutorStale
from samestep.schedule import actions

ROWS, BATCH, SHARDS, STEPS = 56, 16, 4, 9  # the fourth step of an epoch has 8 rows


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


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
    if kind == "sometimes":
        return Sometimes()
    middle = [nn.BatchNorm1d(24)] if kind == "norm" else []
    return nn.Sequential(nn.Linear(12, 24, bias=not middle), *middle, nn.ReLU(), nn.Linear(24, 5))


def job(
    kind: str = "plain", optimizer: str = "sgd", clip: float = 0.0, falls: bool = True, steps: int = STEPS,
    sync: str = "exact", sync_batchnorm: bool = False,
) -> samestep.Job:  # fmt: skip
    return samestep.Job(
        model=partial(net, kind),
        loss=None if kind == "counted" else nn.CrossEntropyLoss(),
        forward=counted if kind == "counted" else None,
        optimizer=OPTIMIZERS[optimizer],
        scheduler=(lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.8)) if falls else None,
        clip_grad_norm=clip or None,
        data=(numbers(ROWS, 12), torch.arange(ROWS) % 5),
        evaluate=(numbers(20, 12), torch.arange(20) % 5),
        batch_size=BATCH,
        shards=SHARDS,
        shuffle=False,
        steps=steps,
        epochs=99,
        sync=sync,
        sync_batchnorm=sync_batchnorm,
    )


def forgetful() -> samestep.Job:
    """One worker counts one update less than it makes, as if it had not come to it: a bug on purpose."""
    real = ExecutorStale.step

    def step(self: ExecutorStale, action: actions.Update, state: StepState) -> None:
        real(self, action, state)
        if state.number == 2 and self.transport.rank == 1:
            self.bound.versions[1] -= 1

    ExecutorStale.step = step  # type: ignore[method-assign]
    return job(sync="stale(1)")
