"""A small job whose steps a plain loop can follow: rows in their order, nothing random in forward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

import samestep

BATCH, SHARDS = 16, 4


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perceptron(norm: bool) -> nn.Module:
    middle = [nn.BatchNorm1d(24)] if norm else []
    return nn.Sequential(nn.Linear(12, 24, bias=not norm), *middle, nn.ReLU(), nn.Linear(24, 5))


def job(
    model: Callable[[], nn.Module],
    optimizer: Callable[[list[nn.Parameter]], optim.Optimizer],
    rows: int,
    seed: int,
    steps: int,
    clip: float,
    decay: float | None,
) -> samestep.Job:
    """seed: of the rows. decay: what every step leaves of the learning rate."""
    return samestep.Job(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=None if decay is None else lambda optimizer: lr_scheduler.ExponentialLR(optimizer, decay),
        clip_grad_norm=clip or None,
        data=(numbers(rows, 12, seed=seed), torch.arange(rows) % 5),
        evaluate=(numbers(20, 12, seed=seed), torch.arange(20) % 5),
        batch_size=BATCH,
        shards=SHARDS,
        shuffle=False,
        steps=steps,
        epochs=99,
    )
