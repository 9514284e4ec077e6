from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.parallel.gradients.layout import (
    ALIGN,
    CHUNK,
    Layout,
    Piece,
    dense,
    grid_chunks,
    share_pieces,
    storage_order,
)

near_chunk = st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7])
sizes = st.lists(st.integers(1, 200) | near_chunk | st.integers(1, 12 * CHUNK), min_size=1, max_size=7)


def layout_of(sizes: list[int], tied: tuple[int, ...] = ()) -> Layout:
    """Parameters without values worth their memory: one element, expanded to each size."""
    params = [nn.Parameter(torch.zeros(1).expand(size)) for size in sizes]
    names = [(f"p{i}", param, 0 if i in tied else None) for i, param in enumerate(params)]
    return Layout(names)


def covered(layout: Layout, shares: list[list[Piece]]) -> list[tuple[int, int]]:
    """(entry, element) ranges in the order of the shares, joined where they touch."""
    joined: list[tuple[int, int, int]] = []
    for piece in (piece for share in shares for piece in share):
        if joined and joined[-1][0] == piece.entry and joined[-1][2] == piece.start:
            joined[-1] = (piece.entry, joined[-1][1], piece.stop)
        else:
            joined.append((piece.entry, piece.start, piece.stop))
    assert all(start == 0 for _, start, _ in joined), "a gap or an overlap"
    return [(entry, stop) for entry, _, stop in joined]


@given(sizes, st.integers(1, 9), st.booleans())
def test_shares_cover_every_element_exactly_once(sizes: list[int], workers: int, whole: bool) -> None:
    layout = layout_of(sizes)
    shares = share_pieces(layout, workers, whole=whole)
    assert len(shares) == workers
    assert covered(layout, shares) == list(enumerate(sizes))


@given(sizes, st.integers(1, 9))
def test_cuts_lie_on_the_chunk_grid_of_the_parameters_own_index(sizes: list[int], workers: int) -> None:
    for share in share_pieces(layout_of(sizes), workers, whole=False):
        assert len({piece.entry for piece in share}) == len(share), "one piece of a parameter per worker"
        for piece in share:
            assert piece.start % CHUNK == 0
            assert piece.stop % CHUNK == 0 or piece.stop == sizes[piece.entry]


@given(sizes, st.integers(1, 9))
def test_whole_parameters_stay_whole(sizes: list[int], workers: int) -> None:
    for share in share_pieces(layout_of(sizes), workers, whole=True):
        assert all((piece.start, piece.stop) == (0, sizes[piece.entry]) for piece in share)


@given(sizes, st.integers(1, 9))
def test_shares_are_as_equal_as_the_grid_allows(sizes: list[int], workers: int) -> None:
    """Every cut is at most half a chunk away from where equal shares would have it."""
    counts = [sum(p.stop - p.start for p in share) for share in share_pieces(layout_of(sizes), workers, whole=False)]
    for rank in range(workers):
        assert abs(sum(counts[:rank]) - sum(sizes) * rank // workers) <= CHUNK // 2


@given(st.lists(st.integers(1, 3 * CHUNK), min_size=2, max_size=5), st.integers(1, 4))
def test_a_tied_name_owns_nothing(sizes: list[int], workers: int) -> None:
    sizes[-1] = sizes[0]
    layout = layout_of(sizes, tied=(len(sizes) - 1,))
    assert covered(layout, share_pieces(layout, workers, whole=False)) == list(enumerate(sizes[:-1]))
    assert layout.aliases(0) == [len(sizes) - 1]
    assert [i for i, _ in layout.owners()] == list(range(len(sizes) - 1))


@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))))
def test_gradients_start_aligned_and_do_not_overlap(made: list[tuple[int, torch.dtype]]) -> None:
    params = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in made]
    layout = Layout([(f"p{i}", param, None) for i, param in enumerate(params)])
    for entry, param in zip(layout.entries, params, strict=True):
        assert entry.start % (ALIGN * param.element_size()) == 0
    ends = [(entry.start, entry.start + entry.nbytes) for entry in layout.entries]
    assert all(a[1] <= b[0] for a, b in pairwise(ends))
    assert layout.nbytes == (ends[-1][1] if ends else 0)


def strided() -> dict[str, Tensor]:
    return {
        "contiguous": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).t(),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "bfloat16": torch.randn(5).bfloat16(),
        "scalar": torch.randn(()),
        "empty": torch.randn(0, 3),
        "ones": torch.randn(1, 5, 1, 1).to(memory_format=torch.channels_last),
    }


def test_a_view_has_shape_and_strides_of_its_parameter_and_lies_in_the_memory() -> None:
    params = {name: nn.Parameter(value) for name, value in strided().items()}
    layout = Layout([(name, param, None) for name, param in params.items()])
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for i, param in enumerate(params.values()):
        layout.view(memory, i).copy_(param.detach())
    for i, param in enumerate(params.values()):
        view = layout.view(memory, i)
        assert torch.equal(view, param)
        assert (view.shape, view.stride(), view.dtype) == (param.shape, param.stride(), param.dtype)
        assert torch.equal(layout.flat(memory, i), storage_order(param.detach()))
        assert view.numel() == 0 or view.data_ptr() == memory.data_ptr() + layout.entries[i].start


@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_dense_tensors_stay_themselves(dims: list[int], shape: list[int]) -> None:
    tensor = torch.randn(shape).permute(dims)
    assert dense(tensor) is tensor
    assert torch.equal(storage_order(tensor).sort().values, tensor.flatten().sort().values)
    assert storage_order(tensor).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(3, 8)[:, ::2], torch.randn(4, 6)[1:3, 1:3], torch.randn(1, 4).expand(3, 4), torch.randn(9)[::3]],
    ids=["columns", "inner", "expanded", "steps"],
)
def test_tensors_with_gaps_become_contiguous(tensor: Tensor) -> None:
    assert dense(tensor).is_contiguous()
    assert torch.equal(dense(tensor), tensor)


@given(st.integers(0, 3 * CHUNK + 5), st.integers(0, 3))
def test_chunks_are_the_tensor_again(size: int, first: int) -> None:
    flat = torch.arange(size)
    found = grid_chunks(flat, first * CHUNK)
    assert all(len(chunk) == CHUNK for chunk in found[:-1])
    assert all(0 < len(chunk) <= CHUNK for chunk in found)
    assert torch.equal(torch.cat([torch.empty(0, dtype=flat.dtype), *found]), flat)


def test_a_piece_between_the_grid_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="chunk grid"):
        grid_chunks(torch.zeros(5), 7)
