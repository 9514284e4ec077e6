"""Jobs whose callback, which worker 0 alone calls, or whose factory and evaluation change what others rely on."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import samestep


def job(change: str = "nothing", step: int = 2) -> samestep.Job:
    made: list[nn.Module] = []
    optimizers: list[torch.optim.Optimizer] = []

    def model() -> nn.Module:
        made.append(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)))
        made[0][0].bias.requires_grad_(False)  # type: ignore[index]
        return made[0]

    def optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.SGD(params, 0.1))
        return optimizers[-1]

    def callback(number: int, loss: float, metrics: Mapping[str, float]) -> None:
        first = dict(made[0].named_parameters())
        if number != step:
            return
        if change == "freeze":
            first["0.weight"].requires_grad_(False)
        elif change == "thaw":
            first["0.bias"].requires_grad_(True)
        elif change == "group":
            optimizers[0].add_param_group({"params": [first["0.bias"]]})
        elif change == "appended":
            optimizers[0].param_groups.append({"params": [first["0.bias"]], "lr": 0.1})
        elif change == "rate":
            optimizers[0].param_groups[0]["lr"] = 0.01

    return samestep.Job(
        model=model,
        loss=nn.MSELoss(),
        data=(torch.randn(64, 4), torch.randn(64, 1)),
        optimizer=optimizer,
        batch_size=16,
        shards=2,
        steps=8,
        callbacks=[callback],
    )


class Thawing(nn.Module):
    """A frozen BatchNorm and Dropout between trained layers; says in its loss in which modes they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.last = nn.Linear(8, 1)
        self.norm.eval()
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.drop(self.norm(self.first(x)))))


def frozen_layers() -> samestep.Job:
    return samestep.Job(
        model=Thawing,
        loss=nn.MSELoss(),
        data=(torch.randn(64, 4), torch.randn(64, 1)),
        evaluate=(torch.randn(16, 4), torch.randn(16, 1)),
        optimizer=lambda params: torch.optim.SGD(params, 0.1),
        batch_size=16,
        shards=2,
        epochs=2,
    )
