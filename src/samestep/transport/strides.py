"""A tensor as a header and one run of bytes, strides included.

Strides are numerics: BatchNorm, pooling and GELU give other bits for other strides, so a tensor
arrives with those it left with, stride 0 (an expanded tensor) included. What travels is the span of
storage between its first and last element:

    expand(3, 4) of one row, strides (0, 1)     span of 4 elements, not 12
    x[:, ::2] of a 3 x 8, strides (8, 2)        span of 23
"""

import json
from typing import Any

import torch
from torch import Tensor


def span(tensor: Tensor) -> int:
    """Elements of storage from the first to the last one that `tensor` touches."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def header(tensor: Tensor) -> bytes:
    """dtype, shape, strides, and which kind of memory the receiver is to have it in."""
    name = str(tensor.dtype).removeprefix("torch.")
    return json.dumps([name, list(tensor.shape), list(tensor.stride()), tensor.device.type]).encode()


def payload(tensor: Tensor) -> Tensor:
    """The span as a flat uint8 tensor; shares memory with `tensor`."""
    return tensor.detach().as_strided((span(tensor),), (1,)).view(torch.uint8)


def empty_from(text: bytes) -> tuple[Tensor, Tensor]:
    """A tensor made after `text` (from `header`), and its span as uint8 to be filled."""
    dtype, shape, strides, length, kind = _parse(text)
    flat = torch.empty(length, dtype=dtype, device=kind)
    return flat.as_strided(shape, strides), flat.view(torch.uint8)


def view_from(text: bytes, memory: Tensor) -> Tensor:
    """The tensor described by `text` whose span begins at the first byte of `memory`. Shares memory."""
    dtype, shape, strides, length, _ = _parse(text)
    flat = memory[: length * dtype.itemsize].view(dtype)
    return flat.as_strided(shape, strides, flat.storage_offset())


def _parse(text: bytes) -> tuple[torch.dtype, list[int], list[int], int, str]:
    fields: list[Any] = json.loads(text)
    name, shape, strides, kind = fields
    length = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    return getattr(torch, name), shape, strides, length, kind
