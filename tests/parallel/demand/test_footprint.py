"""Memory counts what is there, not only what is trained."""

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samestep.parallel.demand.footprint import constant_bytes
from samestep.parallel.gradients.layout import Layout, untie


@given(frozen=st.integers(1, 40), trained=st.integers(1, 40), channels=st.integers(1, 9))
def test_frozen_parameters_count_once_and_buffers_twice(frozen: int, trained: int, channels: int) -> None:
    model = nn.Sequential(nn.Linear(frozen, 3), nn.Linear(3, trained), nn.BatchNorm1d(channels, affine=False))
    model[0].requires_grad_(False)
    layout = Layout(untie(model, [param for param in model.parameters() if param.requires_grad]))
    assert constant_bytes(model, layout) == 4 * 3 * (frozen + 1) + 2 * (2 * 4 * channels + 8)
