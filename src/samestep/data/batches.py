"""Batches that others have loaded, as rows that can be counted and cut."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from samestep.errors import JobRefused


def num_rows(batch: Any) -> int:
    """Number of rows of a batch, from its first tensor. Raises JobRefused when it has none."""
    sizes = [len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
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

    return tree_map(cut, batch)


def tensors_in(nest: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nest of lists, tuples and dicts, with where they are in it: "[0]['ids']"."""
    for path, leaf in tree_flatten_with_path(nest)[0]:
        if isinstance(leaf, Tensor):
            yield keystr(path), leaf
