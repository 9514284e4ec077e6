"""Small jobs whose local steps can be followed by hand: rows in their order, nothing random in forward."""

from functools import partial

import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

import samestep

ROWS, BATCH, SHARDS, STEPS = 64, 16, 4, 10


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def net(norm: bool) -> nn.Module:
    middle = [nn.BatchNorm1d(24)] if norm else []
    return nn.Sequential(nn.Linear(12, 24, bias=not norm), *middle, nn.ReLU(), nn.Linear(24, 5))


def job(
    lr: float = 0.1, momentum: float = 0.9, clip: float = 0.0, falls: bool = True, norm: bool = True, steps: int = STEPS
) -> samestep.Job:
    return samestep.Job(
        model=partial(net, norm),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.SGD(params, lr, momentum=momentum),
        scheduler=(lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9)) if falls else None,
        clip_grad_norm=clip or None,
        data=(numbers(ROWS, 12), torch.arange(ROWS) % 5),
        evaluate=(numbers(20, 12), torch.arange(20) % 5),
        batch_size=BATCH,
        shards=SHARDS,
        shuffle=False,
        steps=steps,
        epochs=99,
    )


def wide(steps: int = 8) -> samestep.Job:
    """59,658 parameters, beside which records are small."""
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(64, 800), nn.ReLU(), nn.Linear(800, 10)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.SGD(params, 0.05),
        data=(numbers(ROWS, 64), torch.arange(ROWS) % 10),
        batch_size=BATCH,
        shards=SHARDS,
        steps=steps,
        epochs=99,
    )
