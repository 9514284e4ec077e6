"""A model that is left as it was: whatever happens to its buffers and attributes inside is undone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samestep.system.nests import mapped

MANAGED = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, buffers are copies; afterwards buffers, attributes, and lists and dicts among these, are as before."""
    with untouched_buffers(model):
        attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
        contents = [
            (value, value.copy())
            for _, before in attributes
            for name, value in before.items()
            if name not in MANAGED and type(value) in (list, dict, set)
        ]
        try:
            yield
        finally:
            for now, before in attributes:
                if len(now) != len(before) or any(now.get(name) is not value for name, value in before.items()):
                    now.clear()
                    now.update(before)
            for value, copy in contents:
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(copy)


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
