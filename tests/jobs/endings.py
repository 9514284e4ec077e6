"""Jobs that would find out only at the end, or at the first save, what their state cannot be written as."""

from typing import Any

import torch
from torch import Tensor, nn, optim

import samestep


class Extra(nn.Linear):
    """State that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"seen": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


class Stateless:
    """A schedule without a position that anybody could write."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= 0.9


class Odd(optim.SGD):
    """State of an optimizer that is neither tensor nor number."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["history"] = ["first"]
        return super().step(closure)


class GlobalNorm(optim.Optimizer):
    """The step is bound by the norm of all gradients together."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        if params:
            norm = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
            for param in params:
                param.sub_(param.grad / norm.clamp(min=1.0), alpha=self.param_groups[0]["lr"])  # type: ignore[operator]


class OneStepSize(GlobalNorm):
    """A step size that adapts to all parameters, kept in the group as Prodigy keeps it."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, lr)
        self.param_groups[0]["d"] = 1e-6

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        params = [param for param in group["params"] if param.grad is not None]
        group["d"] = max(group["d"], 1e-3 * sum(float(p.grad.abs().sum()) for p in params if p.grad is not None))
        for param in params:
            param.sub_(param.grad.sign(), alpha=group["d"])  # type: ignore[union-attr]


class PerParameter(GlobalNorm):
    """The norm of each parameter's own gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.sub_(param.grad / param.grad.norm().clamp(min=1.0), alpha=group["lr"])


def with_function(params: list[nn.Parameter]) -> optim.Optimizer:
    made = optim.SGD(params, 0.1)
    made.param_groups[0]["rule"] = lambda step: 0.1
    return made


OPTIMIZERS: dict[str, Any] = {
    "function": with_function,
    "odd state": lambda params: Odd(params, 0.1),
    "global norm": GlobalNorm,
    "one step size": OneStepSize,
    "per parameter": PerParameter,
}


class Sizes(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3, dtype=dtype), nn.Linear(3, 1, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.first(x)).abs())


def job(case: str = "nothing") -> samestep.Job:
    dtype = torch.complex128 if case == "complex128" else torch.complex64 if case == "complex64" else torch.float32
    model: Any = lambda: nn.Sequential((Extra if case == "extra state" else nn.Linear)(4, 3), nn.Linear(3, 1))  # noqa: E731
    if dtype.is_complex:
        model = lambda: Sizes(dtype)  # noqa: E731
    if case == "compiled":
        model = lambda: nn.Sequential(torch.compile(nn.Linear(4, 3)), nn.Linear(3, 1))  # noqa: E731
    return samestep.Job(
        model=model,
        loss=nn.MSELoss(),
        data=(torch.randn(64, 4, dtype=dtype), torch.randn(64, 1)),
        optimizer=OPTIMIZERS.get(case, lambda params: optim.SGD(params, 0.1)),
        scheduler=Stateless if case == "stateless" else None,
        batch_size=16,
        shards=2,
        steps=6,
    )
