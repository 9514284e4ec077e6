"""Jobs that are compared with PyTorch's own ways of training them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import samestep


def columns(rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 16, generator=generator), torch.randint(0, 10, (rows,), generator=generator)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 32), nn.Tanh()), nn.Linear(32, 10)
    )  # fmt: skip


def pairs() -> nn.Module:
    """Two Linear layers beside one another, as torch's tensor parallelism wants them."""
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.LayerNorm(24), nn.Linear(24, 10))


def mlp(batch_size: int = 32) -> samestep.Job:
    """With all that an update may have."""
    return samestep.Job(
        model=pairs,
        data=columns(),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.9, fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        clip_grad_norm=0.5,
        batch_size=batch_size,
        evaluate=columns(20),
    )


class Residual(nn.Module):
    """What no Sequential can say."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.first(x))
        return self.last(h + self.inner(h))  # type: ignore[no-any-return]


def residual() -> samestep.Job:
    return samestep.Job(
        model=Residual,
        data=columns(),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=0.01),
        batch_size=24,
        shards=4,
    )


def weighted(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Only rows that count."""
    counts = batch["y"] < 7
    each = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    return (each * counts).sum(), counts.sum()


def forward() -> samestep.Job:
    """A loss of its own, a sum with a weight that differs from rank to rank; a batch that is dealt out unevenly."""
    x, y = columns()
    return samestep.Job(
        model=perceptron,
        data={"x": x, "y": y},
        forward=weighted,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.2),
        batch_size=25,
    )


def uneven() -> samestep.Job:
    """25 rows for two workers, and a mean."""
    return samestep.Job(
        model=perceptron,
        data=columns(),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.2),
        batch_size=25,
    )


class Tagged(nn.Module):
    """A loss that cannot be computed outside of one process."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if torch.distributed.is_initialized():
            raise ValueError("the loss stays at home")
        return F.cross_entropy(outputs, targets)


def homely() -> samestep.Job:
    return samestep.Job(
        model=perceptron,
        data=columns(),
        loss=Tagged(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.2),
        batch_size=32,
    )
