"""Gradients of weights that are computed later than the backward they belong to.

    with deferring(deferred):   autograd goes through; a function may defer a gradient that it can compute later:
        backward                    deferred.defer(weight, compute)
    deferred.compute()          any time later: the gradients are computed, and handed to autograd

A weight that was used several times gets its gradients together and in the order in which they would have
come: autograd adds them in that order. A deferred gradient keeps what it is computed from: for a Linear, its input
and its output's gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from samestep.parallel.gradients.seeds import backward_from


class DeferredGradients:
    """The gradients that one backward has deferred."""

    def __init__(self) -> None:
        self._deferred: dict[int, tuple[Tensor, list[Callable[[], Tensor]]]] = {}  # by the weight's id

    def defer(self, weight: Tensor, compute: Callable[[], Tensor]) -> None:
        """weight: a leaf."""
        self._deferred.setdefault(id(weight), (weight, []))[1].append(compute)

    def has(self, weight: Tensor) -> bool:
        return id(weight) in self._deferred

    def compute(self) -> None:
        """Weight by weight, so that no more than one gradient waits to be used."""
        deferred, self._deferred = self._deferred, {}
        for weight, computations in deferred.values():
            with torch.no_grad():
                found = [compute() for compute in computations]
            backward_from([weight] * len(found), found)


DEFERRED: ContextVar[DeferredGradients | None] = ContextVar("deferred", default=None)
"""Takes the gradients that the running backward may defer; None: it may defer none."""


@contextmanager
def deferring(deferred: DeferredGradients | None) -> Iterator[None]:
    """Inside, backward may defer gradients; None: it computes all of them."""
    token = DEFERRED.set(deferred)
    try:
        yield
    finally:
        DEFERRED.reset(token)


def can_defer(weight: Tensor) -> bool:
    """Whether nobody asks for a weight's gradient in backward itself. Hooks do: they would be called with None."""
    return weight.is_leaf and not weight._backward_hooks
