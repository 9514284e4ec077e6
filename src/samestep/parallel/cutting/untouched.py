"""A model that is left as it was: whatever happens to its buffers and attributes inside is undone."""

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samestep.system.nests import PLAIN, mapped, walk

MANAGED = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, buffers are copies; afterwards buffers, attributes, and the modules' lists and dicts are as before.

    What a model does once, in its first forward, stays: hooks that it installs, flags and objects that it makes.
    """
    with untouched_buffers(model):
        attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
        contents = [
            (value, copy.copy(value))
            for _, before in attributes
            for name, value in before.items()
            if name not in MANAGED and not name.endswith("hooks") and isinstance(value, dict | list | set | deque)
        ]
        try:
            yield
        finally:
            for now, before in attributes:
                for name, value in list(now.items()):
                    if name not in before and _changes_with_batches(value):
                        del now[name]
                    elif name in before and value is not before[name]:
                        was_made = before[name] in (None, False) if isinstance(before[name], PLAIN) else False
                        if not was_made or _changes_with_batches(value):
                            now[name] = before[name]
                now.update({name: value for name, value in before.items() if name not in now})
            for value, before_it in contents:
                value.clear()
                (value.extend if isinstance(value, list | deque) else value.update)(before_it)


def _changes_with_batches(value: Any) -> bool:
    """Whether a value that forward leaves on a module may be another one after the next batch: a tensor, a number."""
    numbers = (int, float, complex)
    leaves = (leaf for _, leaf in walk(value))
    return any(isinstance(leaf, (Tensor, *numbers)) and not isinstance(leaf, bool) for leaf in leaves)


@contextmanager
def untouched_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, buffers are copies; what happens to them is forgotten."""
    bound = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    copies: dict[int, Tensor] = {}  # a buffer with two homes stays one
    for module, name, buffer in bound:
        module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in bound:
            module._buffers[name] = buffer


def copy_of_batch(batch: Any) -> Any:
    """A batch that forward may change in place."""

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.layout == torch.strided and 0 in leaf.stride():  # expanded: no copy has its strides
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)

    return mapped(batch, fresh)
