"""Tensors like those that an operation returns, without their values."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch._meta_registrations
from torch import Tensor
from torch.utils import _pytree as pytree

from samestep.parallel.lazy_init.address_space import SMALL

SAME_SHAPE = {"tril", "triu", "cumsum", "cumprod", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}
WITHOUT_VALUES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}


def inferred(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Tensors of the shapes and types that `func` returns, without its values."""
    found = _shape_at_once(func, args, kwargs)
    if found is not None:
        return found
    try:
        return func(*_stand_ins(args, "meta"), **_stand_ins(_without_generator(func, kwargs), "meta"))
    except NotImplementedError:  # not every operation knows its result's shape without computing one
        with torch.random.fork_rng(devices=()):
            return func(*_stand_ins(args, "cpu"), **_stand_ins(kwargs, "cpu"))


def _shape_at_once(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The result of a common operation; the meta device has these in Python, behind imports of more than a second."""
    name, names = func._schema.name.split("::")[-1], [argument.name for argument in func._schema.arguments]
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if "size" in names and not inputs and name not in WITHOUT_VALUES:
        at = names.index("size")
        empty = func(*args[:at], [0], *args[at + 1 :], **kwargs)
        return torch.empty(args[at], dtype=empty.dtype, device="meta")
    if name in ("arange", "linspace") and all(isinstance(n, int | float) and abs(n) <= SMALL for n in args):
        is_short = name == "linspace" or len(args) < 3 or abs(args[2]) >= 1
        return func(*args, **kwargs) if is_short else None
    is_alike = torch.Tag.pointwise in func.tags or name in SAME_SHAPE
    if is_alike and inputs and len(func._schema.returns) == 1 and all(tensor.is_contiguous() for tensor in inputs):
        dtype = _tiny(func, args, kwargs).dtype
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in inputs))  # type: ignore[no-untyped-call]
        return torch.empty(shape, dtype=dtype, device="meta")
    return None


def _tiny(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The result of `func` for tensors of one element, or of none if it would draw."""
    n = 0 if torch.Tag.nondeterministic_seeded in func.tags else 1

    def tiny(value: object) -> object:
        return torch.ones((n,) * value.ndim, dtype=value.dtype) if isinstance(value, Tensor) else value

    result: Tensor = func(*pytree.tree_map(tiny, args), **pytree.tree_map(tiny, dict(kwargs)))
    return result


def _stand_ins(values: Any, device: str) -> Any:
    def stand_in(value: object) -> object:
        if isinstance(value, Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).zero_()
        return value

    return pytree.tree_map(stand_in, values)


def _without_generator(func: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: None if name == "generator" else value for name, value in kwargs.items()}
    if any(argument.name == "device" for argument in func._schema.arguments):
        found["device"] = torch.device("meta")
    return found
