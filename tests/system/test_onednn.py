import pytest
import torch
import torch.nn.functional as F

from samestep.system.onednn import LINEAR


def test_onednns_linear_is_the_product() -> None:
    """`torch.ops.mkldnn._linear_pointwise`, which is private."""
    if LINEAR is None:
        pytest.skip("this torch is built without oneDNN")
    x, weight, bias = torch.randn(9, 33), torch.randn(17, 33), torch.randn(17)
    found = LINEAR(x, weight, bias, "none", [], "")
    torch.testing.assert_close(found, F.linear(x, weight, bias))
