"""Whether an optimizer looks at several parameters together is found by its steps, not by its name."""

from collections.abc import Callable

import pytest
import torch
from torch import nn, optim

from jobs.endings import GlobalNorm, OneStepSize, PerParameter
from samestep.parallel.gradients.optimizer_twins import mixed_parameter


class PlainAdam(optim.Adam):
    """A class that nobody knows."""


Make = Callable[[list[nn.Parameter]], optim.Optimizer]
APART: dict[str, Make] = {
    "SGD": lambda params: optim.SGD(params, 0.1),
    "subclass": PlainAdam,
    "per parameter": PerParameter,
    "Adafactor": optim.Adafactor,
    "groups": lambda params: PlainAdam([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]),
}


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in ((40, 9), (9,), (3, 3, 3, 3), (), (1, 70))]


@pytest.mark.parametrize("make", APART)
def test_each_parameter_by_itself(make: str) -> None:
    assert mixed_parameter(APART[make](params()), {}) is None


@pytest.mark.parametrize("make", [GlobalNorm, OneStepSize])
def test_several_together(make: Make) -> None:
    made = params()
    before = [one.detach().clone() for one in made]
    optimizer = make(made)
    assert mixed_parameter(optimizer, {id(one): f"p{i}" for i, one in enumerate(made)}) == "p0"
    assert all(torch.equal(a, b) for a, b in zip(made, before, strict=True))
    assert not optimizer.state
    assert all(one.grad is None for one in made)


def test_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    mixed_parameter(PerParameter([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]), {})
    assert torch.rand(1) == wanted
