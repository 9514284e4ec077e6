import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.parallel.gradients.clipping import chunk_norms, clip_factor, total_norm
from samestep.parallel.gradients.layout import CHUNK, Layout, share_pieces

SIZES = [5, 3 * CHUNK + 17, CHUNK, 1, 2 * CHUNK - 1]
GRADIENTS = [
    torch.randn(size, generator=torch.Generator().manual_seed(i)) * 10.0 ** (i - 2) for i, size in enumerate(SIZES)
]
LAYOUT = Layout([(f"p{i}", nn.Parameter(torch.zeros(1).expand(size)), None) for i, size in enumerate(SIZES)])


def norms_over(workers: int, *, whole: bool = False) -> list[tuple[int, int, float]]:
    """All chunk norms, in whatever order the workers send them."""
    found = []
    for share in reversed(share_pieces(LAYOUT, workers, whole=whole)):
        found += chunk_norms([(piece, GRADIENTS[piece.entry][piece.start : piece.stop]) for piece in share])
    return found


@given(workers=st.integers(1, 9), whole=st.booleans())
def test_the_norm_does_not_depend_on_the_cut(workers: int, whole: bool) -> None:
    alone = norms_over(1)
    found = norms_over(workers, whole=whole)
    assert sorted(found) == sorted(alone)
    assert total_norm(found) == total_norm(alone)
    assert len(found) == sum(-(-size // CHUNK) for size in SIZES)


def test_the_norm_is_torchs_up_to_rounding() -> None:
    params = [nn.Parameter(torch.zeros(size)) for size in SIZES]
    for param, grad in zip(params, GRADIENTS, strict=True):
        param.grad = grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(params, 0.5)
    norm = total_norm(norms_over(3))
    assert norm == pytest.approx(float(expected), rel=1e-6)
    factor = clip_factor(norm, 0.5)
    for param, grad in zip(params, GRADIENTS, strict=True):
        torch.testing.assert_close(param.grad, grad * factor, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_of_any_dtype(dtype: torch.dtype) -> None:
    grad = torch.full((100,), 2.0, dtype=dtype)
    pieces = [(share[0], grad) for share in share_pieces(Layout([("p", nn.Parameter(grad), None)]), 1, whole=False)]
    assert total_norm(chunk_norms(pieces)) == pytest.approx(20.0, rel=1e-2)


def test_a_small_gradient_is_left_alone() -> None:
    assert clip_factor(0.3, 1.0) == 1.0
    assert clip_factor(0.0, 1.0) == 1.0
    assert clip_factor(4.0, 1.0) == pytest.approx(0.25)


def test_no_gradient_has_no_norm() -> None:
    assert chunk_norms([]) == []
    assert total_norm([]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spreads_as_in_torch(bad: float) -> None:
    grad: Tensor = torch.ones(10)
    grad[3] = bad
    param = nn.Parameter(torch.zeros(10))
    param.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_([param], 1.0)
    pieces = [(share[0], grad) for share in share_pieces(Layout([("p", param, None)]), 1, whole=False)]
    norm = total_norm(chunk_norms(pieces))
    assert not math.isfinite(norm)
    torch.testing.assert_close(grad * clip_factor(norm, 1.0), param.grad, equal_nan=True)
