"""Nests: values inside values of any type. Lists and mappings, also their subclasses; dataclasses; plain objects.

torch's pytree opens what is registered with it; batches, caches and outputs are often of other types. A nest is walked
in a fixed order, each container once (cycles end), and rebuilt without running anybody's constructor:

    Batch(x=..., meta={"ids": ...})     .x    .meta['ids']

Leaves are tensors, plain values, functions, modules, and whatever has neither items nor attributes.
"""

import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Path = tuple[tuple[str, Any], ...]  # ("[", key) or (".", name), from the outside

CLOSED = (
    Tensor, nn.Module, np.ndarray, np.generic, Enum, type, types.ModuleType, types.FunctionType, types.MethodType,
    types.BuiltinFunctionType, types.GeneratorType, weakref.ref, torch.Generator, torch.Size, torch.UntypedStorage,
    torch.TypedStorage, torch.dtype, torch.device, torch.layout, torch.memory_format,
    str, bytes, bytearray, int, float, complex, type(None), type(...), range, slice, set, frozenset,
)  # fmt: skip
PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...), range, slice, Enum, np.generic,
         torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)  # fmt: skip
"""Types of leaves whose value is their text."""
BUILT_IN = (tuple, list, dict)  # without attributes, and by far the most frequent


def walk(nest: Any, stop: tuple[type, ...] = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves with their paths, in a fixed order; values of the types `stop` are leaves too."""
    yield from _walk(nest, (), set(), stop)


def tensors_of(nest: Any) -> list[tuple[Path, Tensor]]:
    """The tensors with their paths, in a fixed order; one that is in several places is listed once."""
    found: dict[int, tuple[Path, Tensor]] = {}
    for path, leaf in walk(nest):
        if isinstance(leaf, Tensor):
            found.setdefault(id(leaf), (path, leaf))
    return list(found.values())


def mapped(nest: Any, change: Callable[[Any], Any], stop: tuple[type, ...] = ()) -> Any:
    """A copy with every leaf changed. What was one container, or one leaf, in two places stays one."""
    memo: dict[int, Any] = {}
    late: list[tuple[Any, str, Any]] = []  # weak references, to be turned to the copies
    copied = _mapped(nest, change, stop, memo, late)
    for owner, name, reference in late:
        if id(reference()) in memo:
            _set(owner, name, weakref.ref(memo[id(reference())]))
    return copied


def mapped_simply(nest: Any, change: Callable[[Any], Any]) -> Any:
    """The same for tuples, lists and dicts themselves; subclasses and objects are leaves. It takes less time."""
    kind = type(nest)
    if kind is tuple:
        return tuple([mapped_simply(part, change) for part in nest])
    if kind is list:
        return [mapped_simply(part, change) for part in nest]
    if kind is dict:
        return {key: mapped_simply(part, change) for key, part in nest.items()}
    return change(nest)


def at(nest: Any, path: Path) -> Any:
    """The value at a path. Raises LookupError or AttributeError where there is none."""
    for kind, key in path:
        if kind == ".":
            nest = object.__getattribute__(nest, key)
        else:
            nest = dict.__getitem__(nest, key) if isinstance(nest, dict) else nest[key]
    return nest


def shown(path: Path) -> str:
    """The path as Python would spell it: `['ids'].data[0]`."""
    return "".join(f".{key}" if kind == "." else f"[{key!r}]" for kind, key in path)


def is_open(value: Any, stop: tuple[type, ...] = ()) -> bool:
    """True for a container, false for a leaf."""
    if type(value) in BUILT_IN:
        return True
    if isinstance(value, Tensor):
        return False
    if isinstance(value, dict | list | tuple | deque) and not isinstance(value, (*stop, torch.Size)):
        return True
    if isinstance(value, (*CLOSED, *stop)):
        return False
    try:
        object.__new__(type(value))
    except TypeError:
        return False  # its memory is that of a type in C: its parts are unknown
    return bool(_attributes(value)) or hasattr(value, "__dict__")


def _walk(value: Any, path: Path, met: set[int], stop: tuple[type, ...]) -> Iterator[tuple[Path, Any]]:
    if not is_open(value, stop):
        yield path, value
        return
    if id(value) in met:
        return
    met.add(id(value))
    for step, part in parts_of(value):
        yield from _walk(part, (*path, step), met, stop)


def parts_of(value: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    """The items of a container, then its attributes."""
    if isinstance(value, dict):
        yield from ((("[", key), part) for key, part in dict.items(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from (((".", name), part) for name, part in zip(value._fields, tuple.__iter__(value), strict=True))
    elif isinstance(value, list | tuple | deque):
        yield from ((("[", i), part) for i, part in enumerate(_items(value)))
    if type(value) not in BUILT_IN:
        yield from (((".", name), part) for name, part in _attributes(value).items())


def _items(value: Any) -> list[Any]:
    return list(next(base for base in (list, tuple, deque) if isinstance(value, base)).__iter__(value))


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes that an object keeps in `__dict__` and in slots; nothing of a property runs."""
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            slot = vars(kind).get(mangled)
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    found[mangled] = slot.__get__(value)
                except AttributeError:  # not set
                    continue
    if isinstance(value, OrderedDict) and type(value) is OrderedDict:
        return found
    return found | dict(getattr(value, "__dict__", {}))


def _mapped(
    value: Any, change: Callable[[Any], Any], stop: tuple[type, ...], memo: dict[int, Any], late: list[Any]
) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if not is_open(value, stop):
        changed = change(value)
        if not isinstance(value, PLAIN):  # small values have no identity
            memo[id(value)] = changed
        return changed
    kind = type(value)
    if isinstance(value, tuple):
        parts = [_mapped(part, change, stop, memo, late) for part in tuple.__iter__(value)]
        made: Any = tuple.__new__(kind, parts) if kind.__module__ != "torch.return_types" else kind(parts)
        memo[id(value)] = made
    elif isinstance(value, dict):
        made = memo[id(value)] = (OrderedDict if isinstance(value, OrderedDict) else dict).__new__(kind)
        if isinstance(value, defaultdict):
            made.default_factory = value.default_factory
        put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
        for key, part in dict.items(value):
            put(made, key, _mapped(part, change, stop, memo, late))
    elif isinstance(value, list | deque):
        base: Any = list if isinstance(value, list) else deque
        made = memo[id(value)] = base.__new__(kind)
        if base is deque:
            deque.__init__(made, (), value.maxlen)  # type: ignore[union-attr]
        base.extend(made, [_mapped(part, change, stop, memo, late) for part in base.__iter__(value)])
    else:
        made = memo[id(value)] = object.__new__(kind)
    for name, part in _attributes(value).items() if kind not in BUILT_IN else ():
        if isinstance(part, weakref.ref):
            late.append((made, name, part))
        _set(made, name, _mapped(part, change, stop, memo, late))
    return made


def _set(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, also of a frozen object, without its owner's noticing."""
    if hasattr(owner, "__dict__") and not isinstance(getattr(type(owner), name, None), types.MemberDescriptorType):
        owner.__dict__[name] = value
    else:
        object.__setattr__(owner, name, value)
