"""A gradient matrix as the product of two thin ones.

Vogels, Karimireddy and Jaggi, "PowerSGD: practical low-rank gradient compression for distributed
optimization" (2019). There the factors are averaged over all workers; here each edge of the tree has
factors of its own, so that the sum stays the tree's.

    M  n x m     the gradient, rows = dim 0: a convolution's weight is out x rest
    Q  m x r     from the step before; in the first one, normally distributed
    P  = orthogonal columns of M Q       n x r
    Q' = M^T P                           m x r, kept for the next step
    sent: P, Q'       decoded: P Q'^T, the projection of M on the columns of P
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from samestep.codec.codec import State, require, wide
from samestep.numerics.numerics import key

LINE = 64  # bytes; as torch's own allocations


@dataclass(frozen=True)
class PowerSGD:
    """One step of power iteration per call, warm-started: it turns to the gradient's main directions.

    Exact up to rounding for a matrix of rank <= `rank`. Parameters with fewer than two dims, and those
    whose factors would not be smaller, are packed as they are. bfloat16 values are calculated in
    float32, their factors are sent in bfloat16. Like other products of matrices, the bits belong to a
    number of threads. An infinity or a nan makes nan of most of the parameter.

    packed: P of shape (n, rank) and Q' of shape (m, rank) in the values' type; or the values.
    state: "q", Q' as calculated.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"powersgd:{self.rank}, factors of rank {self.rank}", "a rank of at least 1")

    @property
    def name(self) -> str:
        return f"powersgd:{self.rank}"

    @property
    def grain(self) -> None:
        return None

    def encode(self, values: Tensor, state: State) -> list[Tensor]:
        if not self._factorises(values.shape):
            return [values.clone(memory_format=torch.contiguous_format)]
        matrix = _aligned(values.reshape(values.shape[0], -1).to(wide(values.dtype)))
        before = _aligned(state["q"]) if "q" in state else self._start(matrix)
        p = torch.linalg.qr(matrix @ before).Q.to(values.dtype).contiguous()
        q = matrix.T @ _aligned(p.to(matrix.dtype))
        # a step without gradient shall not forget the directions
        state["q"] = q if q.any() else before.clone()
        return [p, q.to(values.dtype, copy=True)]

    def decode(self, packed: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if not self._factorises(shape):
            return packed[0].clone()
        p, q = (_aligned(factor.to(wide(dtype))) for factor in packed)
        return (p @ q.T).to(dtype).reshape(tuple(shape))

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        numel = sum(_sides(shape)) * self.rank if self._factorises(shape) else prod(shape)
        return numel * dtype.itemsize

    def _factorises(self, shape: Sequence[int]) -> bool:
        return len(shape) >= 2 and sum(_sides(shape)) * self.rank < prod(shape)

    def _start(self, matrix: Tensor) -> Tensor:
        """The first Q: the same for all matrices of one shape, on every device."""
        generator = torch.Generator().manual_seed(key("powersgd", *matrix.shape, self.rank))
        start = torch.randn(matrix.shape[1], self.rank, generator=generator, dtype=matrix.dtype)
        return start.to(matrix.device)


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], prod(shape[1:])


def _aligned(matrix: Tensor) -> Tensor:
    """Contiguous, from the start of a cache line: the bits of a product depend on both."""
    matrix = matrix.contiguous()
    return matrix.clone() if matrix.data_ptr() % LINE else matrix
