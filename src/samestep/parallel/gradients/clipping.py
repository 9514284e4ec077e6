"""Clip the gradient's norm over all workers: squares per 32,768-element chunk, in a fixed order.

A norm summed from differently cut pieces differs in the seventh digit, so every owner sends the
norm of each chunk and every worker adds all of them up in the order of the parameters.
"""

import math
import struct
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samestep.errors import Disagreement
from samestep.parallel.gradients.layout import CHUNK, Piece, grid_chunks

Norms = list[tuple[int, int, float]]  # entry, chunk, norm
NORM = struct.Struct("<IId")


def clip(
    owned: Sequence[tuple[Piece, Tensor]], max_norm: float, exchange: Callable[[bytes], list[bytes]] = lambda own: [own]
) -> float:
    """Scale the summed gradients of the owned pieces, in place, and return the norm of the whole gradient.

    exchange: gives this worker's record to all others and returns everyone's; by default there are no others.
    """
    records = exchange(b"".join(NORM.pack(*norm) for norm in chunk_norms(owned)))
    norm = total_norm(list(NORM.iter_unpack(b"".join(records))))
    factor = clip_factor(norm, max_norm)
    for _, grad in owned:
        grad.mul_(factor)
    return norm


def chunk_norms(owned: Sequence[tuple[Piece, Tensor]]) -> Norms:
    """The 2-norm of each chunk of the summed gradients, one 1-D tensor per piece."""
    parts = [(piece, i, part) for piece, grad in owned for i, part in enumerate(grid_chunks(grad, piece.start))]
    norms = torch._foreach_norm([part for _, _, part in parts], 2.0) if parts else []
    return [
        (piece.entry, piece.start // CHUNK + i, float(norm)) for (piece, i, _), norm in zip(parts, norms, strict=True)
    ]


def total_norm(norms: Norms) -> float:
    """The norm of the whole gradient, in float64, chunks in the order of the parameters.

    A chunk that several hosts update is sent by each. Raises Disagreement where they differ.
    """
    found: dict[tuple[int, int], float] = {}
    for entry, chunk, norm in norms:
        other = found.setdefault((entry, chunk), norm)
        if other != norm and not (math.isnan(other) and math.isnan(norm)):
            raise Disagreement(
                f"two hosts have summed a gradient (chunk {chunk} of entry {entry}) to {other} and {norm}"
            )
    return math.sqrt(math.fsum(norm * norm for _, norm in sorted(found.items())))


def clip_factor(norm: float, max_norm: float) -> float:
    """As `torch.nn.utils.clip_grad_norm_`: max_norm / (norm + 1e-6), at most 1."""
    return min(max_norm / (norm + 1e-6), 1.0)  # in this order a NaN stays one
