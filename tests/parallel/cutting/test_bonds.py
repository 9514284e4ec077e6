"""Calls that have to stay in one segment."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.parallel.cutting.bonds import bonds_of
from samestep.parallel.cutting.cut import cut
from samestep.parallel.cutting.recorder import record


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.d = self.a  # a second parent


def twice(m: Any, x: Tensor) -> Tensor:
    return m.a(m.b(m.d(x)))


def frozen_twice(m: Any, x: Tensor) -> Tensor:
    return m.frozen(m.b(m.frozen(m.a(x))))


def normed_twice(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.b(m.norm(m.a(x))))


def forces(m: Any, x: Tensor) -> Tensor:
    x = m.c(x)
    energy = m.b(m.a(x)).sum()
    return torch.autograd.grad(energy, x, create_graph=True)[0]


def without_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = m.b(m.a(x))
    return m.c(x)


def sparse(m: Any, x: Tensor) -> Tensor:
    graph = torch.eye(4).to_sparse()
    return torch.sparse.mm(graph, m.b(m.a(x)).t())


CASES = {
    "twice": (twice, "parameter a.weight is used in stages 0 and 1"),
    "normed twice": (normed_twice, "buffer norm.running_mean, which forward changes, is used in stages 0 and 1"),
    "forces": (forces, "grad is asked for a gradient through calls in stages 0 and 1"),
    "without gradient": (without_gradient, r"a torch.no_grad\(\) begun at test_bonds.py:\d+ reaches over a cut"),
    "sparse": (sparse, "a sparse tensor is used in stages 0 and 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cut_through_a_bond_is_refused_and_the_bond_says_where_not_to_cut(case: str) -> None:
    forward, said = CASES[case]
    model = Net()
    recording = record(model, lambda m, b: forward(m, b[0]), (torch.randn(3, 4),), ["b"], ["a", "b", "c"])
    start = next(i for i, call in enumerate(recording.calls) if call.what == "b")
    assert any(bond.is_cut_before(start) for bond in bonds_of(recording, model))
    with pytest.raises(JobRefused, match=said):
        cut(recording, model, 2, {})


@pytest.mark.parametrize(("forward", "start"), [(frozen_twice, "b"), (forces, "a"), (without_gradient, "c")])
def test_a_cut_beside_it_is_none(forward: Any, start: str) -> None:
    model = Net()
    recording = record(model, lambda m, b: forward(m, b[0]), (torch.randn(3, 4),), [start], ["a", "b", "c"])
    assert len(cut(recording, model, 2, {}).segments) == 2
