"""Whether data give the same twice: asked of the first sample and of the first batch that a process makes.

What comes from a generator of the data's own, from a file's position or from a clock depends on which process asks, and
how often; torch's, NumPy's and Python's own generators are seeded for every row.
"""

import copy
import io
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samestep.data.batches import tensors_in
from samestep.errors import JobRefused
from samestep.numerics import random_streams

Collate = Callable[[list[Any]], Any]
SOURCES = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random, io.IOBase)


def check_repeats(first: Any, second: Any, what: str, owner: Any) -> None:
    """Raises JobRefused where two makings of one thing differ. owner: what made them."""
    where = difference(first, second)
    if where is None:
        return
    source = source_in(owner)
    suspect = "" if source is None else f" (it has {source})"
    raise JobRefused(
        f"{what} was made twice from the same row and differs{where and ' at ' + where}: {type(owner).__name__}"
        f"{suspect} draws from a generator, a position or a clock of its own, and workers would get other rows than "
        "one process: draw from torch, random or numpy.random, which are seeded for every row, or seed the generator "
        "by the row's number in each call"
    )


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """The path to the first tensor, array, number or text that differs; None where none does. Other objects count as
    equal."""
    if type(a) is not type(b):
        return path
    if isinstance(a, Tensor):
        if a.layout != torch.strided or a.is_quantized:
            return None
        return None if a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b) else path
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape
        return None if same and (a.dtype.hasobject or a.tobytes() == b.tobytes()) else path
    if isinstance(a, str | bytes | int | float | complex | np.generic):
        return None if a == b or a != a else path
    if isinstance(a, Mapping):
        if list(a) != list(b):
            return path
        return next((d for key in a if (d := difference(a[key], b[key], f"{path}[{key!r}]")) is not None), None)
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return path
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for i, (x, y) in pairs if (d := difference(x, y, f"{path}[{i}]")) is not None), None)
    return None


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def source_in(owner: Any, depth: int = 3) -> str | None:
    """An attribute that is a generator or an open file, in words."""
    for name, value in (getattr(owner, "__dict__", None) or {}).items():
        if isinstance(value, SOURCES):
            return f"a {type(value).__name__} as its attribute {name}"
        if depth and not isinstance(value, type) and type(value).__module__ != "builtins":
            found = source_in(value, depth - 1)
            if found is not None:
                return f"{found} of {name}"
    return None


class CountedCollate:
    """A collate function of the user's own, asked how many rows it keeps: (rows, batch) of a list of samples.

    Rows are counted in the batch where it has them first, as its first batch shows: of one sample it has one, of two
    it has two. Else samples that are None count as left out.
    """

    def __init__(self, collate: Collate, *, is_tried: bool) -> None:
        """is_tried: whether the first batch is made twice, and compared."""
        self._collate, self._is_tried = collate, is_tried
        self._has_rows_first: bool | None = None  # not known yet

    def __call__(self, samples: list[Any]) -> tuple[int, Any]:
        asked, empty = len(samples), sum(sample is None for sample in samples)
        batch = self._first(samples) if self._has_rows_first is None else self._collate(samples)
        found = leading(batch) if self._has_rows_first else None
        return (asked - empty if found is None else found), batch

    def _first(self, samples: list[Any]) -> Any:
        try:
            twins = [copy.deepcopy(samples) for _ in range(3)]
        except Exception:  # noqa: BLE001 - what cannot be copied cannot be tried
            self._has_rows_first = False
            return self._collate(samples)
        state = random_streams.leave()
        full = [[sample for sample in twin if sample is not None][:2] for twin in twins[:2]]
        self._has_rows_first = [self._rows_of(full[0][:1]), self._rows_of(full[1])] == [1, 2]
        random_streams.resume(state)
        trial = self._collate(twins[2]) if self._is_tried else None
        random_streams.resume(state)
        batch = self._collate(samples)
        if self._is_tried:
            check_repeats(trial, batch, "the first batch of Job.collate_fn", self._collate)
        return batch

    def _rows_of(self, samples: list[Any]) -> int | None:
        try:
            return leading(self._collate(samples))
        except Exception:  # noqa: BLE001 - a batch of so few samples may not be possible
            return None


def leading(batch: Any) -> int | None:
    """The first dimension that all tensors of a batch share, if they do."""
    sizes = {len(tensor) for _, tensor in tensors_in(batch) if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None
