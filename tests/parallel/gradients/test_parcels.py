"""Parcels: whatever is put in comes out on the other side, and both sides cut alike."""

from collections import deque

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.parallel.gradients.parcels import ALIGN, LARGEST, Parcel, in_parcels, padded
from samestep.transport.baton import Baton
from samestep.transport.links import Pending
from samestep.transport.threads import ThreadLinks

SIZES = st.lists(
    st.integers(0, 300) | st.integers(0, 2 * LARGEST) | st.sampled_from([LARGEST - 1, LARGEST]), max_size=9
)


@given(SIZES)
def test_every_stretch_is_in_one_parcel_in_its_order(sizes: list[int]) -> None:
    found = in_parcels(sizes)
    assert [i for together in found for i in together] == list(range(len(sizes)))
    assert all(together for together in found)


@given(SIZES)
def test_a_parcel_is_small_or_one_stretch_and_no_smaller_than_it_must_be(sizes: list[int]) -> None:
    found = in_parcels(sizes)
    totals = [sum(sizes[i] for i in together) for together in found]
    assert all(total <= LARGEST or len(together) == 1 for total, together in zip(totals, found, strict=True))
    for total, after in zip(totals, found[1:], strict=False):
        assert total + sizes[after.start] > LARGEST


def connected() -> tuple[ThreadLinks, ThreadLinks]:
    """Of workers 0 and 1, both in this thread."""
    baton, gone = Baton(), set[int]()
    baton.take()
    board: dict[tuple[int, int, int], deque[Tensor]] = {}
    return ThreadLinks(0, board, gone, baton), ThreadLinks(1, board, gone, baton)


def strewn(memory: Tensor, sizes: list[int]) -> list[Tensor]:
    """Stretches of memory, each with a byte before it that is not its own."""
    found, at = [], 0
    for size in sizes:
        found.append(memory[at + 1 : at + 1 + size])
        at += size + 1
    return found


def filled(sizes: list[int], seed: int) -> Tensor:
    return torch.randint(0, 256, (sum(sizes) + len(sizes) + 1,), generator=torch.Generator().manual_seed(seed)).byte()


@given(st.lists(st.integers(0, 70), min_size=1, max_size=6), st.integers(0, 99))
def test_what_is_put_in_comes_out_where_it_belongs_and_nothing_else_changes(sizes: list[int], seed: int) -> None:
    ours, theirs = filled(sizes, seed), filled(sizes, seed + 100)
    wanted = theirs.clone()
    for view, source in zip(strewn(wanted, sizes), strewn(ours, sizes), strict=True):
        view.copy_(source)
    left, right = connected()
    sends, gets = Parcel(1, 7, strewn(ours, sizes)), Parcel(0, 7, strewn(theirs, sizes))
    assert sends.nbytes == gets.nbytes == (sizes[0] if len(sizes) == 1 else sum(map(padded, sizes)))
    before = ours.clone()
    for _ in range(2):  # a parcel is used in every step
        gets.expect(right)
        sends.post(left)
        gets.unpack()
        sends.wait()
        assert torch.equal(theirs, wanted)
        theirs.zero_()
        wanted = torch.zeros_like(wanted)
        for view, source in zip(strewn(wanted, sizes), strewn(ours, sizes), strict=True):
            view.copy_(source)
    assert torch.equal(ours, before)


def test_a_single_stretch_is_not_copied_on_its_way() -> None:
    """What is posted is the memory itself, and what is filled too."""
    seen: list[int] = []

    class Links(ThreadLinks):
        def post(self, flat: Tensor, peer: int, tag: int) -> Pending:
            seen.append(flat.data_ptr())
            return super().post(flat, peer, tag)

        def expect(self, flat: Tensor, peer: int, tag: int) -> Pending:
            seen.append(flat.data_ptr())
            return super().expect(flat, peer, tag)

    baton = Baton()
    baton.take()
    links = Links(0, {}, set(), baton)
    one, other = torch.zeros(100, dtype=torch.uint8), torch.ones(100, dtype=torch.uint8)
    Parcel(0, 1, [one[3:90]]).post(links)
    Parcel(0, 1, [other[5:92]]).expect(links)
    assert seen == [one[3:].data_ptr(), other[5:].data_ptr()]


@given(st.integers(0, 10_000))
def test_a_stretch_in_a_parcel_starts_where_any_dtype_may(nbytes: int) -> None:
    assert padded(nbytes) % ALIGN == 0
    assert nbytes <= padded(nbytes) < nbytes + ALIGN
