"""Made-up forwards, cut wherever no bond is broken: gradients and bits of the uncut one, for another batch as well."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.parallel.cutting.bonds import bonds_of
from samestep.parallel.cutting.cut import cut
from samestep.parallel.cutting.recorder import record
from samestep.parallel.cutting.recording import OtherAnswer
from samestep.parallel.execution.cell import Cell, Gradients

LAYERS, WIDTH = 5, 4


class Noted:
    def __init__(self) -> None:
        self.notes: list[Tensor] = []


class Layer(nn.Linear):
    """Keeps a value on itself, and notes another one in an object if it is given one."""

    def forward(self, x: Tensor, noted: Noted | None = None) -> Tensor:
        y = super().forward(x)
        self.kept = torch.sigmoid(y)
        if noted is not None:
            noted.notes.append(y * 0.5)
            y = y + noted.notes[0]
        return torch.tanh(y)


Step = tuple[str, int, int]


class Program(nn.Module):
    """Performs steps on a list of values, all of one shape."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(WIDTH, WIDTH) for _ in range(LAYERS))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        values, noted = [x], Noted()
        for kind, i, j in self.steps:
            a, b, layer = values[i % len(values)], values[j % len(values)], self.layers[j % LAYERS]
            values += STEPS[kind](a, b, layer, noted)
        return values[-1] + sum(values[1:])


def in_place(a: Tensor, b: Tensor, *_: Any) -> list[Tensor]:
    a.view(-1, 2, 2).add_(1.5)
    return []


def added(a: Tensor, b: Tensor, *_: Any) -> list[Tensor]:
    a.add_(b.detach() if a is b else b)
    return []


def without_gradient(a: Tensor, b: Tensor, *_: Any) -> list[Tensor]:
    with torch.no_grad():
        return [torch.tanh(a)]


def slope(a: Tensor, b: Tensor, layer: Any, _: Any) -> list[Tensor]:
    if not a.requires_grad:
        return []
    return [torch.autograd.grad(layer(a).sum(), a, create_graph=True)[0]]


STEPS: dict[str, Callable[..., list[Tensor]]] = {
    "layer": lambda a, b, layer, noted: [layer(a)],
    "noting layer": lambda a, b, layer, noted: [layer(a, noted)],
    "kept": lambda a, b, layer, noted: [layer.kept] if hasattr(layer, "kept") else [],
    "noted": lambda a, b, layer, noted: noted.notes[-1:],
    "product": lambda a, b, layer, noted: [a * b * 3.0],
    "sum": lambda a, b, layer, noted: [a + b * 1e3],
    "view": lambda a, b, layer, noted: [a.view(-1).view(a.shape)],
    "turned": lambda a, b, layer, noted: [a.t().contiguous().t()],
    "in place": in_place,
    "added": added,
    "detached": lambda a, b, layer, noted: [a.detach()],
    "without gradient": without_gradient,
    "branch": lambda a, b, layer, noted: [-a if a.sum() > 0 else a * 2],
    "slope": slope,
}


def uncut(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    model.zero_grad()
    for layer in model.layers:  # type: ignore[union-attr]
        vars(layer).pop("kept", None)
    loss = model(x.clone()).square().sum()
    loss.backward()
    return loss.detach(), [param.grad for param in model.parameters()]


steps = st.lists(
    st.tuples(st.sampled_from(["layer", *STEPS]), st.integers(0, 9), st.integers(0, LAYERS - 1)),
    min_size=3,
    max_size=14,
)


@given(program=steps, data=st.data())
def test_a_cut_program_has_the_bits_of_the_uncut_one(program: list[Step], data: st.DataObject) -> None:
    torch.manual_seed(4)
    model = Program(program)
    first, second = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
    try:
        expected = [uncut(model, x) for x in (first, second)]
    except RuntimeError:  # torch itself refuses the change in place, or there is nothing to train
        assume(condition=False)
    names = [f"layers.{i}" for i in range(LAYERS)]
    try:
        whole = record(model, lambda m, b: m(b[0]), (first,), [], names)
    except JobRefused as error:
        assert "an earlier batch left there" in str(error)  # noqa: PT017 - the one thing that no cut can do
        return
    starts = allowed(whole, model, names)
    assume(starts)
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(starts))), min_size=1)))
    recording = record(model, lambda m, b: m(b[0]), (first,), [starts[i] for i in chosen], names)
    found = cut(recording, model, 1 + len(chosen), {})
    for x, (loss, grads) in zip((first, second), expected, strict=True):
        try:
            made = through(model, x, found)
        except OtherAnswer:
            continue
        assert torch.equal(made, loss)
        for param, grad in zip(model.parameters(), grads, strict=True):
            assert (param.grad is None) == (grad is None)
            assert grad is None or (param.grad is not None and torch.equal(param.grad, grad))


def allowed(recording: Any, model: nn.Module, names: list[str]) -> list[str]:
    """The layers, in order of calling, before which forward may be cut."""
    first: dict[str, int] = {}
    for i, call in enumerate(recording.calls):
        if call.what in names:
            first.setdefault(call.what, i)
    bonds = bonds_of(recording, model)
    return [name for name, i in first.items() if i and not any(bond.is_cut_before(i) for bond in bonds)]


def through(model: nn.Module, x: Tensor, found: Any) -> Tensor:
    model.zero_grad()
    values, needs = {0: x.clone()}, set[int]()
    cells = [Cell(segment, values, needs, model, found.windows) for segment in found.segments]
    objective = cells[-1].local[found.result.index].square().sum()
    grads: Gradients = {}
    for cell in reversed(cells):
        cell.backward(grads, objective if cell is cells[-1] else None)
    return objective.detach()
