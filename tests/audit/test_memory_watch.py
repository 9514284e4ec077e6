"""Memory at rest is watched where it lies, whatever its strides."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from samestep.audit.memory_watch import WatchedTensor, at_rest, regions

STRIDES: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(4, 5, 6, 7),
    "channels_last": lambda: torch.randn(4, 5, 6, 7).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(8, 9).t(),
    "expanded": lambda: torch.randn(5, 1).expand(5, 300),
    "one number": lambda: torch.randn(()),
    "part of another": lambda: torch.randn(10, 6)[3:7],
    "large channels_last": lambda: torch.randn(8, 64, 32, 32).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("strides", STRIDES)
def test_a_change_is_seen(strides: str) -> None:
    tensor = STRIDES[strides]()
    (region,) = regions([WatchedTensor("it", at_rest(tensor))])
    kept = region.blocks().clone()
    assert torch.equal(region.blocks(), kept)
    tensor[tuple(size - 1 for size in tensor.shape)] += 1.0
    assert not torch.equal(region.blocks(), kept)
