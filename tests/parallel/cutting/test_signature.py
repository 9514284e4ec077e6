"""Signatures: batches of equal shapes are one, whatever type they have and wherever they lie in memory."""

from typing import Any

import numpy as np
import pytest
import torch

from jobs import cut_kinds
from samestep.parallel.cutting.signature import signature


@pytest.mark.parametrize("kind", cut_kinds.BATCHES.values(), ids=cut_kinds.BATCHES.keys())
def test_equal_shapes_are_one_signature_and_others_are_not(kind: Any) -> None:
    one, other = (kind(torch.randn(5, 2000), torch.ones(5)) for _ in range(2))
    assert signature(one).form == signature(other).form
    assert signature(kind(torch.randn(6, 2000), torch.ones(6))).form != signature(one).form
    assert "0x" not in str(signature(one)), "no address"
    assert len(str(signature(one))) < 500


def test_plain_values_are_told_apart_with_their_places() -> None:
    x, y = torch.zeros(3), np.zeros(2000)
    assert signature([x, {"name": "a"}]).plain == (("[1]['name']", "'a'"),)
    assert signature([x, y]) == signature([x, y.copy()])
    assert signature([x, y]) != signature([x, np.arange(2000.0)])


def test_the_same_tensor_twice_is_not_two_tensors() -> None:
    x, y = torch.zeros(3), torch.zeros(3)
    assert signature((x, x)) != signature((x, y))


@pytest.mark.parametrize(
    "other", [torch.zeros(3, dtype=torch.int64), torch.zeros(3, requires_grad=True), torch.zeros(6)[::2]]
)
def test_type_gradient_and_strides_belong_to_it(other: torch.Tensor) -> None:
    assert signature([other]) != signature([torch.zeros(3)])
