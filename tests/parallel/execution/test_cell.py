"""Shards that pass from segment to segment: the gradients, and their bits, of the uncut forward."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.parallel.cutting.cut import cut
from samestep.parallel.cutting.recorder import record
from samestep.parallel.execution.cell import Cell, Gradients

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


Forward = Callable[[Any, Any], Tensor]
Named = dict[str, Tensor | None]


def gradients(model: nn.Module) -> Named:
    return {name: param.grad for name, param in model.named_parameters()}


def uncut(model: nn.Module, x: Tensor, forward: Forward = lambda m, b: m(b[0])) -> Named:
    model.zero_grad()
    forward(model, (x,)).square().sum().backward()
    return gradients(model)


def through_cells(
    model: nn.Module, x: Tensor, starts: tuple[str, ...], forward: Forward = lambda m, b: m(b[0])
) -> Named:
    found = cut(record(model, forward, (x,), list(starts), []), model, 1 + len(starts), {})
    model.zero_grad()
    values, needs = {0: x}, set[int]()
    cells = [Cell(segment, values, needs, model, found.windows) for segment in found.segments]
    objective = cells[-1].local[found.result.index].square().sum()
    grads: Gradients = {}
    for i, cell in reversed(list(enumerate(cells))):
        cell.backward(grads, objective if i == len(cells) - 1 else None)
    assert not grads, "every gradient arrives"
    return gradients(model)


def assert_same(found: Named, expected: Named) -> None:
    """Bits, and absence."""
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        other = expected[name]
        assert (grad is None) == (other is None), name
        assert grad is None or other is None or torch.equal(grad, other), name


@pytest.mark.parametrize("starts", [c for n in range(1, 5) for c in combinations(LAYERS, n)], ids="".join)
def test_gradients_of_a_value_with_consumers_in_many_segments(starts: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    model, x = Braid(), torch.randn(6, 5)
    assert_same(through_cells(model, x, starts), uncut(model, x))


class Woven(nn.Module):
    """Layers that take any earlier values; some may lead nowhere."""

    def __init__(self, sources: list[list[int]], ends: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in sources)
        self.sources, self.ends = sources, ends

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for i, (layer, sources) in enumerate(zip(self.layers, self.sources, strict=True)):
            y = layer(values[sources[0] % len(values)])
            for source in sources[1:]:
                other = values[source % len(values)]
                y = y * other if source % 2 else y + other * 10.0 ** (i % 4)
            values.append(torch.tanh(y))
        result = values[-1]
        for end in self.ends:
            result = result + values[end % len(values)] * 3.0
        return result


@given(
    sources=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=4), min_size=2, max_size=7),
    ends=st.lists(st.integers(0, 60), max_size=3),
    data=st.data(),
)
def test_any_weave_cut_anywhere(sources: list[list[int]], ends: list[int], data: st.DataObject) -> None:
    torch.manual_seed(2)
    model, x = Woven(sources, ends), torch.randn(4, 3)
    cuts = data.draw(st.lists(st.integers(1, len(sources) - 1), min_size=1, unique=True))
    starts = tuple(f"layers.{i}" for i in sorted(cuts))
    assert_same(through_cells(model, x, starts), uncut(model, x))


def changed_in_place(model: Any, batch: Any) -> Tensor:
    y = model.a(batch[0])
    z = model.b(batch[0])
    z.add_(y)
    y.mul_(2.0)
    return model.c(z) + y[:, :1]


def switched_off_and_detached(model: Any, batch: Any) -> Tensor:
    y = model.a(batch[0])
    with torch.no_grad():
        scale = model.d(y)
    largest = y.argmax(1)
    z = model.b(y * scale)
    return model.c(z.detach() + z * scale)[torch.arange(len(z)), largest] + y.detach().sum()


def expanded(model: Any, batch: Any) -> Tensor:
    y = model.a(batch[0]).mean(0, keepdim=True)
    z = model.b(batch[0] + y.expand(6, 5)).t()
    return model.c(z.t()) + y


def changed_under_another_name(model: Any, batch: Any) -> Tensor:
    y = model.a(batch[0])
    rows, half = y.view(-1), y[:, ::2]
    z = model.b(batch[0])
    y.add_(z)
    rows.mul_(2.0)
    w = model.c(z + y)
    half.add_(torch.sigmoid(w[:, :3]))
    return model.d(w + rows.view_as(w)) + y + half.sum(1, keepdim=True)


def changed_in_parts(model: Any, batch: Any) -> Tensor:
    y = model.a(batch[0])
    first, second = y[:, :3], y[:, 3:]
    z = model.b(batch[0])
    first.mul_(3.0)
    w = model.c(z)
    second.add_(w[:, :2])
    return model.d(w) + first.sum(1, keepdim=True) + second.sum(1, keepdim=True)


@pytest.mark.parametrize(
    "forward", [changed_under_another_name, changed_in_parts, changed_in_place, switched_off_and_detached, expanded]
)
@pytest.mark.parametrize("starts", [("b",), ("c",), ("b", "c")], ids="".join)
def test_gradients_of_less_common_ways(forward: Forward, starts: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    model, x = Braid(), torch.randn(6, 5)
    assert_same(through_cells(model, x, starts, forward), uncut(model, x, forward))
