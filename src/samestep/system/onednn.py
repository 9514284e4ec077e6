"""oneDNN's linear operator, a private one of torch, which public functions do not choose for float32."""

from collections.abc import Callable

import torch
from torch import Tensor


def _linear() -> Callable[..., Tensor] | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


LINEAR = _linear()
"""`LINEAR(x, weight, bias, "none", [], "")` is x Wᵀ + b for x (rows, in) and W (out, in); None where torch has none."""
