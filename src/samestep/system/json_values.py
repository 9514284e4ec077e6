"""Python values as JSON: hyperparameters and states of schedulers, and numbers that JSON does not have."""

import dataclasses
import functools
import json
import math
import typing
from collections import Counter
from collections.abc import Mapping
from typing import Any

from samestep.errors import JobRefused

PAIRS = "pairs"  # a dict whose keys are not all text becomes {"pairs": [[key, value], ...]}


def plain(value: Any, what: str) -> Any:
    """`value` as JSON can hold it. Raises JobRefused, naming `what`, for what has no plain form."""
    from torch import Tensor  # only here and below, so that commands print JSON without torch

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item, what) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and PAIRS not in value:
        return {key: plain(item, what) for key, item in value.items()}
    if isinstance(value, dict):
        return {PAIRS: [[plain(key, what), plain(item, what)] for key, item in value.items()]}
    raise JobRefused(
        f"{what} holds a {type(value).__name__}, which a digest and a checkpoint cannot hold without pickle: "
        "keep numbers, text, lists and dicts there"
    )


def as_before(stored: Any, before: Any) -> Any:
    """A stored value in the types that the value had before."""
    import torch
    from torch import Tensor

    if isinstance(before, Tensor):
        return torch.tensor(stored, dtype=before.dtype)
    old = before if isinstance(before, dict) else {}
    if isinstance(stored, dict) and set(stored) == {PAIRS}:
        found = ((tuple(key) if isinstance(key, list) else key, item) for key, item in stored[PAIRS])
        pairs = {key: as_before(item, old.get(key)) for key, item in found}
        return Counter(pairs) if isinstance(before, Counter) else pairs
    if isinstance(stored, dict):
        return {key: as_before(item, old.get(key)) for key, item in stored.items()}
    if isinstance(stored, list):
        old_items = before if isinstance(before, list | tuple) and len(before) == len(stored) else [None] * len(stored)
        items = [as_before(item, old) for item, old in zip(stored, old_items, strict=True)]
        return tuple(items) if isinstance(before, tuple) else items
    return stored


def finite(value: Any) -> Any:
    """`value` with None in the place of NaN and infinities, at any depth: JSON has neither."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line_of(found: Mapping[str, Any]) -> str:
    """One JSON object on one line, with null for NaN and infinities."""
    return json.dumps(finite(found), allow_nan=False)


def value_from(kind: Any, found: Any) -> Any:
    """A value of type `kind` from the JSON of its `dataclasses.asdict`: dataclasses and tuples are restored."""
    inner = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        make: Any = kind
        hints = field_types(make)
        return make(**{name: value_from(hints.get(name), value) for name, value in found.items()})
    if typing.get_origin(kind) is tuple:
        kinds = [inner[0]] * len(found) if inner[1:] == (...,) else inner
        return tuple(map(value_from, kinds, found))
    return value_from(inner[0], found) if inner[1:] == (type(None),) and found is not None else found


@functools.cache
def field_types(kind: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)
