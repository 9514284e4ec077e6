"""oneDNN's linear operator, a private one of torch: None where this torch has none."""

from typing import Any

import torch

try:
    LINEAR: Any = torch.ops.mkldnn._linear_pointwise
except AttributeError:  # torch without oneDNN
    LINEAR = None
"""`LINEAR(x, weight, bias, "none", [], "")` is x Wᵀ + b for x (rows, in) and W (out, in)."""
