"""The largest few of every chunk, the rest left for later: nothing is sent for what is small.

Aji and Heafield, "Sparse communication for distributed gradient descent" (2017); with error feedback it
converges as the uncompressed step does, Stich et al., "Sparsified SGD with memory" (2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from samestep.codec.codec import GRID, State, require

INDEX = torch.int16  # within a chunk: 0 .. 32,767


@dataclass(frozen=True)
class TopK:
    """The k largest by magnitude of each chunk of 32,768 elements, as they are; of equal ones the first.

    k is `fraction` of the chunk's elements to the nearest whole number, and at least one; the last
    chunk may be shorter. nan counts as infinity, and both are kept before all else.

    packed: int16 indices within their chunk, rising, chunk after chunk, and the values there in their
    own type; both of shape (sum of k,).
    """

    fraction: float = 0.01
    grain = GRID

    def __post_init__(self) -> None:
        fits = 0 < self.fraction <= 1
        require(fits, f"topk:{self.fraction!r}, that share of the elements", "more than 0 and at most 1, e.g. 0.01")

    @property
    def name(self) -> str:
        return f"topk:{float(self.fraction)!r}"

    def encode(self, values: Tensor, state: State) -> list[Tensor]:
        indices = torch.empty(sum(self._kept(values.numel())), dtype=INDEX, device=values.device)
        chosen = values.new_empty(indices.shape)
        at = 0
        for chunk, k in zip(torch.split(values, GRID), self._kept(values.numel()), strict=False):
            where = _largest(chunk, k)
            indices[at : at + k] = where
            chosen[at : at + k] = chunk[where]
            at += k
        return [indices, chosen]

    def decode(self, packed: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        indices, chosen = packed
        decoded = torch.zeros(tuple(shape), dtype=dtype, device=chosen.device)
        at = 0
        for chunk, k in zip(torch.split(decoded, GRID), self._kept(decoded.numel()), strict=False):
            chunk[indices[at : at + k].long()] = chosen[at : at + k]
            at += k
        return decoded

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return sum(self._kept(prod(shape))) * (INDEX.itemsize + dtype.itemsize)

    def _kept(self, numel: int) -> list[int]:
        """k of each chunk."""
        sizes = [min(GRID, numel - start) for start in range(0, numel, GRID)]
        return [max(1, round(size * self.fraction)) for size in sizes]


def _largest(chunk: Tensor, k: int) -> Tensor:
    """Indices, rising. `torch.topk` leaves open which of equal elements it takes, so it finds only how large."""
    magnitude = chunk.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    smallest = magnitude.topk(k, sorted=False).values.min()
    above = magnitude > smallest
    equal = magnitude == smallest
    room = k - above.sum()
    return (above | (equal & (equal.cumsum(0) <= room))).nonzero().squeeze(1)
