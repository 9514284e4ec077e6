"""Gradients of weights that are made later than the backward they belong to.

    with leaving(later):        autograd goes through; a function may leave what it knows how to make:
        backward                    later.leave(weight, make)
    later.make()                any time later: the gradients are made, and handed to autograd

A weight that was used several times gets its gradients together and in the order in which they would have
come: autograd adds them in that order. Whoever leaves a gradient keeps
what it is made from: of a Linear its input and its output's gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from samestep.parallel.gradients.seeds import backward_from


class DeferredGradients:
    """What one backward has left."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[Tensor, list[Callable[[], Tensor]]]] = {}  # by the weight's id

    def leave(self, weight: Tensor, make: Callable[[], Tensor]) -> None:
        """weight: a leaf."""
        self._left.setdefault(id(weight), (weight, []))[1].append(make)

    def has(self, weight: Tensor) -> bool:
        return id(weight) in self._left

    def make(self) -> None:
        """Weight by weight, so that no more than one gradient waits to be taken."""
        left, self._left = self._left, {}
        for weight, makes in left.values():
            with torch.no_grad():
                found = [make() for make in makes]
            backward_from([weight] * len(found), found)


_leaving: ContextVar[DeferredGradients | None] = ContextVar("leaving", default=None)


@contextmanager
def leaving(later: DeferredGradients | None) -> Iterator[None]:
    """Inside, backward may leave gradients; None: it makes all of them."""
    token = _leaving.set(later)
    try:
        yield
    finally:
        _leaving.reset(token)


def can_wait(weight: Tensor) -> bool:
    """Whether nobody asks for a weight's gradient in backward itself. Hooks do: they would be called with None."""
    return weight.is_leaf and not weight._backward_hooks


def later_here() -> DeferredGradients | None:
    """Where the backward that runs may leave gradients, if it may."""
    return _leaving.get()
