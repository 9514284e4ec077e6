"""A codec makes a gradient small for one edge of the reduction tree, and back.

    node (level, index)                                       its parent
        values ── encode ──> packed ── (wire, or not) ──> decode ── decoded ──> is added
                    │
                  state: the edge's own memory, from step to step

What is added is `decode(encode(values))` on every edge that a codec applies to, whether or not the edge
crosses a wire, on one worker too. So a codec is numerics, like the tree itself: it changes the numbers,
and who computes does not. Codecs and transports know nothing of one another.

**Grain.** Parameters are cut between workers at multiples of 32,768 elements, so an element may depend
on those of its own grain only: blocks of `grain` elements, counted from the parameter's first one. Then
the packed tensors of consecutive pieces, laid end to end, are the packed tensors of the whole. A codec
without a grain (None) needs the whole parameter, and so does the worker that applies it.

**State.** A dict of plain tensors, empty before the first step, changed in place by `encode` only. One
per edge and parameter. A codec with a grain keeps tensors of the values' shape there, which are cut as
the values are; so a cut may move between two steps.

**Bits.** Packed tensors, state and decoded values depend on the values and the state alone, for one set
of numerics: not on strides, nor on the addresses of the arguments.

**Failures stay visible.** When `values` has an infinity or a nan, so has what is decoded.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from samestep.errors import PlanRefused

GRID = 32_768  # elements of a parameter's own index between which it may be cut

State = dict[str, Tensor]


class Codec(Protocol):
    """A compression as a value: equal codecs do the same. None of its methods raises for any values."""

    @property
    def name(self) -> str:
        """As `parse_codec` reads it, every setting spelled out, e.g. int8:256."""

    @property
    def grain(self) -> int | None:
        """Elements that depend on one another; a divisor of 32,768. None: the whole parameter does."""

    def encode(self, values: Tensor, state: State) -> list[Tensor]:
        """Pack float32, float64 or bfloat16 values: 1-D with a grain, else of the parameter's shape.

        Leaves `values` alone. The packed tensors are contiguous, as ready to be sent as they are, and
        share no memory with `values` or `state`.
        """

    def decode(self, packed: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new tensor of the shape and type that was encoded; needs no state."""

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Exact size of all packed tensors together, in bytes, for values of this shape and type."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to calculate in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def require(fits: bool, what: str, wanted: str) -> None:
    """Refuse a setting that does not fit, with the settings that do."""
    if not fits:
        raise PlanRefused(f"the codec has {what}; it takes {wanted}")
