"""Half the bytes of float32: the same exponents, 8 bits of precision instead of 24."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from samestep.codec.codec import State


@dataclass(frozen=True)
class BFloat16:
    """Rounds each value to the nearest bfloat16, and a tie to the even one.

    Error: at most 2^-8 of the value, for values that bfloat16 can hold as normal numbers. float64
    passes through float32 on its way, and becomes infinite beyond 3.4e38. Infinities stay, nan stays.

    packed: one bfloat16 tensor of shape (n,).
    """

    name = "bfloat16"
    grain = 1

    def encode(self, values: Tensor, state: State) -> list[Tensor]:
        return [values.to(torch.bfloat16, copy=True, memory_format=torch.contiguous_format)]

    def decode(self, packed: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return packed[0].to(dtype, copy=True)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return prod(shape) * torch.bfloat16.itemsize
