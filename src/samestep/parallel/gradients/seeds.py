"""Backward from given gradients, by roots of our own.

`torch.autograd.backward(tensors, grads)` imports sympy to compare shapes, half a second at the first
step. A scalar whose gradient function hands out the given gradients is the same to the engine: they
are put in before anything else runs.

Where the gradient comes much later than the tensor, a seed stands for it in the graph, and the tensor's memory can go:

    h = block(x)      seed = Seed(h)      send h, forget it      ...      backward_from([seed], [dh])
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


class _Seed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coming: list[Tensor], tensor: Tensor) -> Tensor:
        ctx.coming = coming
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, Tensor]:
        return None, ctx.coming.pop()


class Seed:
    """The place in a graph at which the gradient of `tensor` will come in."""

    def __init__(self, tensor: Tensor) -> None:
        self._coming: list[Tensor] = []
        self._stand_in: Tensor = _Seed.apply(self._coming, tensor)  # type: ignore[no-untyped-call]

    def sown(self, grad: Tensor) -> Tensor:
        """A scalar whose gradient 1 is `grad` of the tensor."""
        self._coming.append(grad)
        return self._stand_in


def backward_from(roots: Sequence[Tensor | Seed], grads: Sequence[Tensor]) -> None:
    """Accumulate the gradients of all leaves, from `grads`, those of `roots`."""
    if roots:
        one = torch.ones(())
        tensors = [root.sown(g) if isinstance(root, Seed) else root for root, g in zip(roots, grads, strict=True)]
        given = [one if isinstance(root, Seed) else g for root, g in zip(roots, grads, strict=True)]
        _Root.apply(given, *tensors).backward()  # type: ignore[no-untyped-call]
