"""Signature of a batch: all that the record of a forward depends on, besides the values of tensors.

The form is the types of its containers, and the shapes and types of its tensors. Plain values, such as a flag or a
name, are kept apart: forward may read them, so each has its record, and one that differs in every batch is told of.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samestep.system.nests import PLAIN, is_open, parts_of, shown


@dataclass(frozen=True)
class Signature:
    form: str
    plain: tuple[tuple[str, str], ...] = ()  # place in the batch, and text, of every value that is no tensor

    def __str__(self) -> str:
        return self.form + (f" with {', '.join(f'{place}={text}' for place, text in self.plain)}" if self.plain else "")


def signature(batch: Any) -> Signature:
    parts, plain = list[str](), list[tuple[str, str]]()
    met: dict[int, int] = {}

    def visit(value: Any, path: Any) -> None:
        if isinstance(value, Tensor) or is_open(value):
            if id(value) in met:  # the same object again
                parts.append(f"={met[id(value)]}")
                return
            met[id(value)] = len(met)
        if isinstance(value, Tensor):
            parts.append(_of_tensor(value))
        elif is_open(value):
            parts.append(f"{type(value).__qualname__}(")
            for (kind, key), part in parts_of(value):
                parts.append(f"{key!r}:" if isinstance(key, PLAIN) else f"{type(key).__qualname__}:")
                visit(part, (*path, (kind, key)))
            parts.append(")")
        else:
            plain.append((shown(path), _text(value)))

    visit(batch, ())
    return Signature(" ".join(parts), tuple(plain))


def _of_tensor(tensor: Tensor) -> str:
    layout = str(tensor.layout)
    if tensor.layout == torch.strided:
        layout = "" if tensor.is_contiguous() else str(tensor.stride())
    return f"{tensor.dtype}{tuple(tensor.shape)}{layout}{'+grad' * tensor.requires_grad}".removeprefix("torch.")


def _text(value: Any) -> str:
    """Text of a plain value; never an address, never what repr abbreviates."""
    if isinstance(value, np.ndarray):
        data = value.tobytes() if value.dtype != object else str(value.shape).encode()
        return f"{value.dtype}{value.shape}#{hashlib.sha256(data).hexdigest()[:16]}"
    if isinstance(value, set | frozenset):
        return str(sorted(_text(part) for part in value))
    if isinstance(value, (bytearray, *PLAIN)):
        text = repr(value)
        return text if len(text) <= 200 else f"{text[:40]}...#{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))
