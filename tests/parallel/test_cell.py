"""Shards that pass from segment to segment: the gradients, and their bits, of the uncut forward."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from samestep.parallel.cell import Cell, Gradients
from samestep.parallel.cut import cut
from samestep.parallel.recording import record

LAYERS = ("b", "c", "d", "e")


class Braid(nn.Module):
    """The first value is taken in every stage; magnitudes make every order of addition visible."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(5, 5) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        y = self.b(first * 1e3)
        z = torch.tanh(self.c(y + first)) * 1e-2
        w = self.d(z * first) + y
        return self.e(w + first * 7.0) * z + torch.sin(first)


def uncut(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("starts", [c for n in range(1, 5) for c in combinations(LAYERS, n)], ids="".join)
def test_gradients_of_a_value_with_consumers_in_many_segments(starts: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    model, x = Braid(), torch.randn(6, 5)
    expected = uncut(model, x)
    found = cut(record(model, lambda m, b: m(b[0]), (x,), list(starts), []), model, 1 + len(starts), {})
    model.zero_grad()
    values, needs = {0: x}, set[int]()
    cells = [Cell(segment, values, needs, model) for segment in found.segments]
    objective = cells[-1].local[found.result.index].square().sum()
    grads: Gradients = {}
    for i, cell in reversed(list(enumerate(cells))):
        cell.backward(grads, objective if i == len(cells) - 1 else None)
    assert not grads
    assert all(torch.equal(param.grad, expected[name]) for name, param in model.named_parameters())  # type: ignore[arg-type]
