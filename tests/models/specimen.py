"""One model of the zoo: how it is made, what it is trained on, and its loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

import samestep

ROWS, BATCH, SHARDS, STEPS, RATE = 24, 8, 4, 3, 0.01


@dataclass(frozen=True)
class Specimen:
    """A model to train.

    data: what `Job.data` takes, with ROWS rows.
    """

    model: Callable[[], nn.Module]
    forward: Callable[[nn.Module, Any], Any]
    data: Any
    collate: Callable[[list[Any]], Any] | None = None

    def job(self, *, calm: bool = False) -> samestep.Job:
        """calm: without dropout, whose masks a sliced layer draws in slices."""
        return samestep.Job(
            model=lambda: self.made(calm=calm),
            forward=self.forward,
            data=self.data,
            collate_fn=self.collate,
            optimizer=lambda params: optim.SGD(params, RATE),
            batch_size=BATCH,
            shards=SHARDS,
            steps=STEPS,
        )

    def made(self, *, calm: bool = False) -> nn.Module:
        model = self.model()
        return calmed(model) if calm else model


def calmed(model: nn.Module) -> nn.Module:
    """The model with every probability of dropping something set to zero."""
    for module in model.modules():
        for name, value in vars(module).items():
            is_rate = isinstance(value, float) and ("drop" in name or name == "p")
            if is_rate and 0.0 < value < 1.0:
                setattr(module, name, 0.0)
    return model


def drops(model: nn.Module) -> bool:
    """Whether `calmed` would change something."""
    return any(
        isinstance(value, float) and ("drop" in name or name == "p") and 0.0 < value < 1.0
        for module in model.modules()
        for name, value in vars(module).items()
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, below: int, seed: int = 0, least: int = 0) -> Tensor:
    return torch.randint(least, below, shape, generator=torch.Generator().manual_seed(seed))


def classes(below: int = 3) -> Tensor:
    return torch.arange(ROWS) % below
