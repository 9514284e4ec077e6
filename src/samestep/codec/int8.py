"""A quarter of the bytes of float32: whole steps of a step width that each block has of its own.

Dettmers, "8-bit approximations for parallelism in deep learning" (2016), and block-wise scales as in
Dettmers et al., "8-bit optimizers via block-wise quantization" (2022), here with equal steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from samestep.codec.codec import GRID, State, require, wide

STEPS = 127  # on either side of zero


@dataclass(frozen=True)
class Int8:
    """code = round(value / scale), with scale = largest magnitude of the block / 127; ties to even.

    Error: at most half a scale, plus the rounding of the values' type. (More where a scale is subnormal,
    below 1e-38 in float32; never more than the block's largest magnitude.) A block of zeros has scale 0.
    A block with an infinity or a nan decodes to nan, all of it.

    packed: int8 codes of shape (n,); scales of shape (ceil(n / block),), float32, for float64 values
    float64. The last block may be shorter.
    """

    block: int = 256

    def __post_init__(self) -> None:
        fits = 16 <= self.block <= GRID and GRID % self.block == 0
        require(fits, f"int8:{self.block}, blocks of {self.block} elements", f"a power of two from 16 to {GRID}")

    @property
    def name(self) -> str:
        return f"int8:{self.block}"

    @property
    def grain(self) -> int:
        return self.block

    def encode(self, values: Tensor, state: State) -> list[Tensor]:
        codes = torch.empty(values.shape, dtype=torch.int8, device=values.device)
        scales = values.new_empty(self._num_blocks(values.numel()), dtype=wide(values.dtype))
        for rows, into, scale in zip(self._rows(values), self._rows(codes), self._per_row(scales, values), strict=True):
            _quantize(rows.to(scale.dtype), into, scale)
        return [codes, scales]

    def decode(self, packed: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        codes, scales = packed
        decoded = torch.empty(codes.shape, dtype=scales.dtype, device=codes.device)
        for rows, into, scale in zip(self._rows(codes), self._rows(decoded), self._per_row(scales, codes), strict=True):
            torch.mul(rows, scale.unsqueeze(1), out=into)
        return decoded.to(dtype)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return prod(shape) + self._num_blocks(prod(shape)) * wide(dtype).itemsize

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _rows(self, flat: Tensor) -> Iterator[Tensor]:
        """The full blocks as the rows of a matrix, then the rest as a matrix of one row or none."""
        full = flat.numel() // self.block * self.block
        yield flat[:full].view(-1, self.block)
        yield flat[full:].view(-1, max(1, flat.numel() - full))

    def _per_row(self, scales: Tensor, flat: Tensor) -> Iterator[Tensor]:
        """The scales that belong to `_rows(flat)`."""
        full = flat.numel() // self.block
        yield scales[:full]
        yield scales[full:]


def _quantize(rows: Tensor, codes: Tensor, scale: Tensor) -> None:
    largest = rows.abs().amax(dim=1)
    failed = ~largest.isfinite()
    # a hair below the largest number, so that 127 scales are no infinity
    limits = torch.finfo(rows.dtype)
    torch.div(largest.clamp(max=limits.max * (1 - 4 * limits.eps)), STEPS, out=scale)
    steps = rows / scale.masked_fill(scale == 0, 1).unsqueeze(1)
    steps.round_().clamp_(-STEPS, STEPS)  # scales that are subnormal are rough
    steps[failed] = 0  # nan has no int8
    codes.copy_(steps)
    scale[failed] = torch.nan
