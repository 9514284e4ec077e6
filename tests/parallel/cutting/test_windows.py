"""Windows on memory: what overlaps, element by element."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.parallel.cutting.windows import Window, view_of


def window(tensor: Tensor) -> Window:
    return Window(1, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


BASE = torch.zeros(4, 6)
slices = st.builds(slice, st.integers(0, 5), st.integers(0, 6), st.integers(1, 3))
views = st.tuples(slices, slices, st.booleans())


def view(base: Tensor, drawn: Any) -> Tensor:
    shown = base[drawn[0], drawn[1]]
    return shown.t() if drawn[2] else shown


@given(views, views)
def test_two_views_overlap_where_a_write_to_one_shows_in_the_other(a: Any, b: Any) -> None:
    base = torch.zeros(4, 6)
    view(base, a).fill_(1.0)
    assert window(view(base, a)).overlaps(window(view(base, b))) == bool(view(base, b).any())


@given(views, views)
def test_a_copy_of_what_covers_a_view_shows_it(a: Any, b: Any) -> None:
    base = torch.arange(24.0).view(4, 6)
    outer, inner = view(base, a), view(base, b)
    if window(outer).covers(window(inner)) and inner.numel():
        assert torch.equal(view_of(outer.clone(), window(outer), window(inner)), inner)


def test_other_memory_never_overlaps() -> None:
    assert not Window(1, 0, (2,), (1,)).overlaps(Window(2, 0, (2,), (1,)))


def test_every_view_is_covered_by_its_base() -> None:
    base = torch.zeros(4, 6)
    assert all(window(base).covers(window(part)) for part in (base, base.t(), base[:, ::2], base.view(-1)[5:]))
    assert not window(base[:, ::2]).covers(window(base))
