"""A large frozen layer below a small trained one."""

import torch
from torch import Tensor, nn

import samestep


def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(1000, 10_000), nn.Linear(10_000, 1))
    made[0].requires_grad_(False)
    return made


def mean(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return torch.as_tensor(model(batch["x"]).square().mean())


def job() -> samestep.Job:
    return samestep.Job(
        model=model,
        forward=mean,
        data={"x": torch.randn(32, 1000)},
        optimizer=lambda params: torch.optim.SGD(params, 0.1),
        batch_size=16,
        shards=2,
        steps=2,
    )
