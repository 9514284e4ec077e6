"""`nn.MultiheadAttention` in slices of heads (Megatron-LM, Shoeybi et al. 2019, section 3).

slice k   q_k, k_k, v_k = x W_qkᵀ, x W_kkᵀ, x W_vkᵀ        its heads' rows of in_proj_weight
          y_k = softmax(q_k k_kᵀ / √d) v_k                 nothing of the other heads is needed
z = Σ_k y_k W_okᵀ + b                                      its heads' columns of out_proj.weight, in the tree's order
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.parallel.cutting.slices import SlicedLayer, SlicedRegion, SliceOf, copied
from samestep.parallel.gradients.linear import linear_into
from samestep.plan.plan import equal_shares


@dataclass(frozen=True)
class SlicedAttention(SlicedLayer):
    """One layer, its heads in K slices. leaves: those of q, k, v (weights, then biases, if any), then of the output."""

    def rows_of(self, x: Tensor) -> Tensor:
        return self._turned(x).contiguous()

    def rows_of_output(self, grad: Tensor) -> Tensor:
        return self._turned(grad).contiguous()

    def shaped(self, y: Tensor, x_shape: torch.Size) -> Tensor:
        return self._turned(y)

    def shaped_input(self, dx: Tensor, x_shape: torch.Size) -> Tensor:
        return self._turned(dx)

    def column(self, k: int, x: Tensor, here: SlicedRegion) -> Tensor:
        """Slice k's summand of the output. x: (rows, positions, features)."""
        module: Any = self.module
        asked, place_of = here.region.attention, here.place_of
        assert asked is not None, "the layer was called as attention"
        mask = None if asked.mask is None else here.model.get_buffer(asked.mask)
        *projections, out = self.leaves[k :: self.num_slices]
        weights, biases = projections[:3], projections[3:]
        made = [linear_into(x, w, biases[i] if biases else None, place_of(w)) for i, w in enumerate(weights)]
        q, key, v = (part.view(*x.shape[:2], -1, module.head_dim).transpose(1, 2) for part in made)
        dropout = module.dropout if module.training else 0.0
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask  # there True forbids, here it allows
        y = F.scaled_dot_product_attention(q, key, v, mask, dropout, is_causal=asked.is_causal)
        return linear_into(y.transpose(1, 2).flatten(2), out, None, place_of(out))

    def _turned(self, x: Tensor) -> Tensor:
        """Swap the layer's own order of dimensions and rows first, if they differ."""
        return x if self.module.batch_first else x.transpose(0, 1)


def slice_attention(
    name: str, module: nn.MultiheadAttention, num_slices: int, values: Callable[[SliceOf], Tensor] = copied
) -> SlicedAttention:
    """Cut a layer into slices of its heads, as equal as can be, with leaves of `values`."""
    heads = equal_shares(module.num_heads, num_slices)
    starts = [sum(heads[:k]) * module.head_dim for k in range(num_slices)]
    widths = [count * module.head_dim for count in heads]
    parts: dict[str, SliceOf] = {}
    for local in ("in_proj_weight", "in_proj_bias"):
        whole = getattr(module, local)
        for offset in range(0, 3 * module.embed_dim if whole is not None else 0, module.embed_dim):  # q, k, v
            for start, width in zip(starts, widths, strict=True):
                first, last = offset + start, offset + start + width
                parts[f"{name}.{local}[{first}:{last}]"] = SliceOf(whole, 0, first, last)
    for start, width in zip(starts, widths, strict=True):
        last = start + width
        parts[f"{name}.out_proj.weight[:,{start}:{last}]"] = SliceOf(
            cast(nn.Parameter, module.out_proj.weight), 1, start, last
        )
    leaves = tuple(nn.Parameter(values(part)) for part in parts.values())
    return SlicedAttention(name, module, False, num_slices, leaves, parts)
