from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import Disagreement
from samestep.parallel.gradients.layout import CHUNK
from samestep.state.digest import chunk_leaves, digest_of, joint_digest, tensor_leaf, value_leaf
from samestep.transport.threads import ThreadFabric

FLAT = torch.randn(5 * CHUNK + 1234, generator=torch.Generator().manual_seed(1))


@given(cuts=st.lists(st.integers(1, 5), unique=True))
def test_leaves_do_not_depend_on_the_cut(cuts: list[int]) -> None:
    ends = [0, *(cut * CHUNK for cut in sorted(cuts)), len(FLAT)]
    pieces = [chunk_leaves("parameter/w", FLAT[a:b], a) for a, b in pairwise(ends)]
    whole = chunk_leaves("parameter/w", FLAT, 0)
    assert {label: leaf for piece in pieces for label, leaf in piece.items()} == whole
    assert sum(map(len, pieces)) == len(whole) == 6
    assert digest_of(pieces) == digest_of([whole]) == digest_of(reversed(pieces))


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, len(FLAT) - 1])
def test_one_changed_bit_changes_the_digest(at: int) -> None:
    other = FLAT.clone()
    other.view(torch.int32)[at] ^= 1
    assert digest_of([chunk_leaves("w", other, 0)]) != digest_of([chunk_leaves("w", FLAT, 0)])


def test_a_leaf_is_of_elements_and_not_of_strides() -> None:
    x = torch.arange(12.0).view(3, 4)
    assert tensor_leaf(x) == tensor_leaf(x.t().contiguous().t())
    assert tensor_leaf(torch.ones(3, 4)) == tensor_leaf(torch.ones(1, 1).expand(3, 4))
    assert tensor_leaf(x) != tensor_leaf(x.t())


def test_a_leaf_tells_dtype_shape_and_signed_zeros_apart() -> None:
    tensors = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(0, 3),
        torch.tensor([0.0, 0.0, 0.0, -0.0]),
        torch.full((4,), torch.nan),
    ]
    assert len({tensor_leaf(tensor) for tensor in tensors}) == len(tensors)
    assert tensor_leaf(torch.full((4,), torch.nan)) == tensor_leaf(torch.full((4,), torch.nan))


def test_values_are_hashed_whatever_the_order_of_their_names() -> None:
    assert value_leaf({"a": 1, "b": [2.5, None]}) == value_leaf({"b": [2.5, None], "a": 1})
    assert value_leaf({"a": 1}) != value_leaf({"a": 1.5})


def test_what_two_workers_hold_must_be_equal() -> None:
    agreed = [{"values": "x", "a": "1"}, {"values": "x", "b": "2"}]
    assert digest_of(agreed) == digest_of([{"values": "x", "a": "1", "b": "2"}])
    with pytest.raises(Disagreement, match="workers 0 and 2 hold different values of values"):
        digest_of([*agreed, {"values": "y"}])


def test_the_digest_names_its_leaves() -> None:
    """The same hashes under other names, or swapped between names, are another state."""
    assert digest_of([{"a": "1", "b": "2"}]) != digest_of([{"a": "2", "b": "1"}])
    assert digest_of([{"a": "1"}]) != digest_of([{"b": "1"}])


def test_the_joint_digest_of_one_worker_is_that_of_its_leaves() -> None:
    transport = ThreadFabric(1).endpoint(0)
    assert joint_digest({"a": "1"}, transport) == digest_of([{"a": "1"}])
