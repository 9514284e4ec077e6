"""Rows of a data set: their order, and how a worker gets those of its shards.

Batch t of an epoch is rows tB .. (t+1)B-1 of a permutation keyed by (seed, epoch), whatever the
number of shards. Before each `data[i]` the generators are keyed by (seed, epoch, row), so random
augmentation depends neither on loader workers nor on who loads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from samestep.data.columns import Column, RowNumbers, TensorRows
from samestep.data.loading import Collate, load
from samestep.data.ordered import Ordered, OrderedRows
from samestep.errors import JobRefused
from samestep.numerics import random_streams
from samestep.numerics.numerics import key


@dataclass(frozen=True)
class RowOrder:
    """Which rows make up which batch."""

    num_rows: int
    batch_size: int
    seed: int
    shuffle: bool = True
    drop_last: bool = False

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(self.num_rows, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def permutation(self, epoch: int) -> Tensor:
        """All rows in the order of an epoch. int64, (num_rows,)."""
        if not self.shuffle:
            return torch.arange(self.num_rows)
        generator = torch.Generator().manual_seed(key(self.seed, "epoch", epoch))
        return torch.randperm(self.num_rows, generator=generator)

    def batches(self, first_step: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, rows) of every step from `first_step` on, without end."""
        epoch, batch = divmod(first_step, self.batches_per_epoch)
        while True:
            order = self.permutation(epoch)
            for at in range(batch * self.batch_size, self.batches_per_epoch * self.batch_size, self.batch_size):
                yield epoch, order[at : at + self.batch_size]
            epoch, batch = epoch + 1, 0

    def batch_rows(self, step: int) -> int:
        """The number of rows of the batch of a step."""
        batch = step % self.batches_per_epoch
        return min(self.batch_size, self.num_rows - batch * self.batch_size)


class Rows(Protocol):
    """Any data set, as rows that can be counted and taken."""

    @property
    def num_rows(self) -> int: ...

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        """The batch of each (epoch, rows) request, in order."""
        ...


class DatasetRows:
    """A map-style data set, through torch's DataLoader."""

    def __init__(self, data: Any, seed: int, collate: Collate | None, num_loader_workers: int) -> None:
        self.num_rows = len(data)
        self._data = _KeyedRows(data, seed)
        self._collate = collate
        self._num_loader_workers = num_loader_workers

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        # Lists of (epoch, row); a data set may be indexed by anything.
        samples = ([(epoch, int(row)) for row in rows] for epoch, rows in requests)
        return load(self._data, samples, self._collate, self._num_loader_workers)


@dataclass(frozen=True)
class FirstRows:
    """Of other rows, at most so many."""

    rows: Rows
    most: int

    @property
    def num_rows(self) -> int:
        return min(self.most, self.rows.num_rows)

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        return self.rows.take(requests)


class _KeyedRows(Dataset[Any]):
    def __init__(self, data: Any, seed: int) -> None:
        self._data, self._seed = data, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, row = key
        random_streams.enter(self._seed, "row", epoch, row)
        return self._data[row]


def as_rows(data: Any, what: str, seed: int, collate: Collate | None, num_loader_workers: int) -> Rows:
    """Make rows of whatever the user gave. Raises JobRefused for what has no rows."""
    if isinstance(data, Ordered):
        return OrderedRows(data, what, seed, collate, num_loader_workers)
    columns = _columns(data, what)
    if columns is None:
        rows: Rows = DatasetRows(data, seed, collate, num_loader_workers)
    elif collate is not None and what == "data":
        raise JobRefused(
            f"Job.collate_fn joins the samples of a data set, Job.{what} is made of tensors that need none: "
            "leave collate_fn out, or give a data set"
        )
    else:
        rows = TensorRows(columns, what, num_loader_workers)
    if rows.num_rows == 0:
        raise JobRefused(f"Job.{what} has no rows: look at how it is loaded" + LEAVE_OUT * (what == "evaluate"))
    return rows


LEAVE_OUT = ", or leave it out"


def _columns(data: Any, what: str) -> Any:
    """A tuple or dict of tensors, arrays and columns on disk; None for a data set. Raises JobRefused for neither."""
    if isinstance(data, Tensor | np.ndarray | Column):
        data = (data,)
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple | list) else []
    strangers = [type(part).__name__ for part in parts if not isinstance(part, Tensor | np.ndarray | Column)]
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind not in "biufc":
            raise JobRefused(
                f"Job.{what} has an array of {part.dtype}, which is no tensor: make numbers of it, or give a data set"
            )
    if parts and not strangers:
        return dict(data) if isinstance(data, Mapping) else tuple(data)
    if isinstance(data, Mapping | tuple) and parts:
        raise JobRefused(
            f"Job.{what} is a {type(data).__name__} that holds a {strangers[0]}: give every column as a tensor or "
            "array with rows first, or a map-style data set"
        )
    is_map_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, IterableDataset | str | bytes) or not is_map_style:
        raise JobRefused(
            f"Job.{what} is a {type(data).__name__}, whose rows cannot be taken by number: give tensors, arrays, "
            "a map-style data set with __len__ and __getitem__, or declare the order of an iterable one with "
            "samestep.Ordered(make, num_rows)"
        )
    return None
