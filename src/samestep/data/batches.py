"""Batches that others have loaded, as rows that can be counted and cut."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from samestep.errors import JobRefused
from samestep.system.nests import mapped, shown, tensors_of


def num_rows(batch: Any) -> int:
    """Number of rows of a batch, from its first tensor. Raises JobRefused when it has none."""
    sizes = [len(tensor) for _, tensor in tensors_of(batch) if tensor.dim()]
    if not sizes:
        raise JobRefused(f"a batch of type {type(batch).__name__} has no tensor with rows")
    return sizes[0]


def rows_of(batch: Any, rows: range, total: int) -> Any:
    """Some rows of a batch of `total`. Raises JobRefused when a tensor has another number of rows."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        if len(leaf) != total:
            raise JobRefused(f"a batch has tensors of {total} and of {len(leaf)} rows: the first dimension is the row")
        return leaf[rows.start : rows.stop]

    return mapped(batch, cut)


def tensors_in(nest: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nest of any types, with where they are in it: "[0]['ids']"."""
    for path, tensor in tensors_of(nest):
        yield shown(path), tensor
