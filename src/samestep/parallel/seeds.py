"""Backward from given gradients, by a root of our own.

`torch.autograd.backward(tensors, grads)` imports sympy to compare shapes, half a second at the first
step. A scalar whose gradient function hands out the given gradients is the same to the engine: they
are put in before anything else runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grads: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.grads = grads
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.grads)


def backward_from(tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Accumulate the gradients of all leaves, from `grads`, those of `tensors`."""
    if tensors:
        _Root.apply(grads, *tensors).backward()  # type: ignore[no-untyped-call]
