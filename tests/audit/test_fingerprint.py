import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.audit.fingerprint import NARROW, ROUND, WIDE, blocks, fingerprint, joined, odd

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


def made(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).bool()
    data = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return data.view(dtype)


@given(
    dtype=st.sampled_from(DTYPES[:-1]),
    count=st.integers(1, 5000),
    seed=st.integers(0, 1000),
    at=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    width=st.sampled_from([NARROW, WIDE]),
)
def test_one_flipped_bit_always_changes_it(
    dtype: torch.dtype, count: int, seed: int, at: int, bit: int, width: int
) -> None:
    x = made(dtype, count, seed)
    before, before_blocks = fingerprint(x), blocks(x, width)
    x.view(torch.uint8)[at % (count * dtype.itemsize)] ^= 1 << bit
    assert fingerprint(x) != before
    assert int((blocks(x, width) != before_blocks).sum()) == 1
    assert joined(blocks(x, width)) != joined(before_blocks)


def test_all_factors_are_odd_and_different() -> None:
    """An even one would lose the highest bits."""
    factors = odd(5000, torch.device("cpu"))
    assert bool((factors % 2 != 0).all())
    assert len(set(factors.tolist())) == 5000
    assert torch.equal(odd(17, torch.device("cpu")), factors[:17])


@given(words=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=70))
def test_it_is_the_sum_that_the_text_says(words: list[int]) -> None:
    factors = odd(NARROW, torch.device("cpu")).tolist()
    found = blocks(torch.tensor(words), NARROW).tolist()
    for number, value in enumerate(found):
        block = words[number * NARROW : (number + 1) * NARROW]
        assert value % ROUND == sum(w * f for w, f in zip(block, factors, strict=False)) % ROUND


def test_order_counts_and_strides_do_not() -> None:
    x = torch.randn(64, 80)
    assert fingerprint(x) == fingerprint(x.t().contiguous().t())
    assert fingerprint(x) != fingerprint(x.flip(0))
    assert fingerprint(x) != fingerprint(x.t())
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))


@pytest.mark.parametrize("start", range(9))
def test_memory_may_begin_anywhere(start: int) -> None:
    data = torch.arange(200, dtype=torch.uint8)
    assert fingerprint(data[start:]) == fingerprint(data[start:].clone())


def test_nothing_has_a_fingerprint_too() -> None:
    assert fingerprint(torch.zeros(0)) == 0
    assert fingerprint(torch.tensor(3.0)) == fingerprint(torch.tensor([3.0]))
