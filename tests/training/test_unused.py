"""Parameters without gradient are reported with the reason that holds."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.training.unused import Unused


class Model(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.used, self.other = way, nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "no_grad":
            with torch.no_grad():
                x = self.other(x)
        elif self.way == "reentrant":
            x = checkpoint(self.other, x, use_reentrant=True)
        elif self.way == "dropped":
            self.other(x)
        elif self.way == "detached":
            x = self.other(x).detach()
        return torch.as_tensor(self.used(x))


REASONS = {
    "unused": "forward does not use it",
    "no_grad": "no gradients are recorded.*use_reentrant=False",
    "reentrant": "no gradients are recorded.*use_reentrant=False",
    "dropped": "the loss does not depend on it",
    "detached": "the loss does not depend on it",
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("way", REASONS)
def test_the_reason_is_the_one_that_holds(way: str) -> None:
    model = Model(way)
    unused = Unused(model, ["other.weight", "other.bias"])
    model(torch.randn(2, 3)).sum().backward()
    unused.end()
    model(torch.randn(2, 3))
    text = unused.warning([name for name, param in model.named_parameters() if param.grad is None])
    assert text.startswith("no gradient so far for other.weight, other.bias: ")
    assert re.search(REASONS[way], text), text
