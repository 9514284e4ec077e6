"""Rows of any data set, counted and taken by their numbers.

Before each `data[i]` the generators are keyed by (seed, epoch, row), so random augmentation depends
neither on loader workers nor on who loads.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from samestep.data.columns import Column
from samestep.data.loading import Collate, load, load_counted
from samestep.data.ordered import Ordered, OrderedRows
from samestep.data.repeats import check_repeats
from samestep.data.row_order import RowNumbers
from samestep.errors import JobRefused
from samestep.numerics import random_streams


class Rows(Protocol):
    """Interface of a data set whose rows can be counted and taken by number."""

    @property
    def num_rows(self) -> int: ...

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        """The batch of each (epoch, rows) request, in order."""

    def take_counted(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[tuple[int | None, Any]]:
        """As `take`, each batch with the number of its rows, where a function of the user's may leave out some."""


def not_counted(batches: Iterator[Any]) -> Iterator[tuple[int | None, Any]]:
    """Batches that have all rows that were asked for."""
    return ((None, batch) for batch in batches)


class TensorRows:
    """Rows of tensors, arrays or columns on disk, in a tuple or a mapping by name. The first dimension is the row."""

    def __init__(self, data: Any, what: str = "data", num_loader_workers: int = 0) -> None:
        columns = list(data.values()) if isinstance(data, Mapping) else list(data)
        if any(column.ndim == 0 for column in columns):
            raise JobRefused(f"Job.{what} has a column without dimensions: the first dimension must be the row")
        self.num_rows = len(columns[0])
        for column in columns[1:]:
            if len(column) != self.num_rows:
                raise JobRefused(
                    f"Job.{what} has columns of {self.num_rows} and {len(column)} rows: "
                    "every tensor's first dimension must be the row"
                )
        self._data = data
        # Rows in memory are copied sooner than a loader worker could send them.
        on_disk = any(isinstance(column, np.memmap | Column) for column in columns)
        self._num_loader_workers = num_loader_workers if on_disk else 0

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        if self._num_loader_workers:
            keys = (np.asarray(rows) for _, rows in requests)
            yield from load(_WholeBatches(self._batch), keys, lambda batch: batch, self._num_loader_workers)
            return
        for _, rows in requests:
            yield self._batch(rows)

    def take_counted(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[tuple[int | None, Any]]:
        return not_counted(self.take(requests))

    def _batch(self, rows: Any) -> Any:
        index = torch.as_tensor(rows)
        if isinstance(self._data, Mapping):
            return {name: _rows_of(column, index) for name, column in self._data.items()}
        return tuple(_rows_of(column, index) for column in self._data)


def _rows_of(column: Any, index: Tensor) -> Tensor:
    if isinstance(column, Tensor):
        return column.index_select(0, index)
    return torch.from_numpy(np.asarray(column[index.numpy()]))


class _WholeBatches(Dataset[Any]):
    """Data set of whole batches, so that a loader worker makes one at a time."""

    def __init__(self, batch: Callable[[Any], Any]) -> None:
        self._batch = batch

    def __getitems__(self, key: Any) -> Any:
        return self._batch(key)


class DatasetRows:
    """Rows of a map-style data set, loaded by torch's DataLoader."""

    def __init__(
        self, data: Any, seed: int, collate: Collate | None, num_loader_workers: int, what: str = "data"
    ) -> None:
        self.num_rows = len(data)
        self.is_tried = False  # whether each process makes its first sample and batch twice
        self._data = _KeyedRows(data, seed, what)
        self._collate = collate
        self._num_loader_workers = num_loader_workers

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        return (batch for _, batch in self.take_counted(requests))

    def take_counted(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[tuple[int | None, Any]]:
        # Lists of (epoch, row); a data set may be indexed by anything.
        samples = ([(epoch, int(row)) for row in rows] for epoch, rows in requests)
        self._data.is_tried = self.is_tried
        return load_counted(self._data, samples, self._collate, self._num_loader_workers, is_tried=self.is_tried)


@dataclass(frozen=True)
class FirstRows:
    """The first rows of other rows, at most `most`."""

    rows: Rows
    most: int

    @property
    def num_rows(self) -> int:
        return min(self.most, self.rows.num_rows)

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        return self.rows.take(requests)

    def take_counted(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[tuple[int | None, Any]]:
        return self.rows.take_counted(requests)


class _KeyedRows(Dataset[Any]):
    """Samples by (epoch, row). Where it is tried, the first one that a process takes is taken twice, and compared."""

    def __init__(self, data: Any, seed: int, what: str) -> None:
        self._data, self._seed, self._what = data, seed, what
        self.is_tried = False

    def __getitem__(self, key: tuple[int, int]) -> Any:
        if not self.is_tried:
            return self._sample(*key)
        self.is_tried = False
        before = self._sample(*key)
        found = self._sample(*key)
        check_repeats(before, found, f"Job.{self._what}[{key[1]}]", self._data)
        return found

    def _sample(self, epoch: int, row: int) -> Any:
        random_streams.enter(self._seed, "row", epoch, row)
        return self._data[row]


def as_rows(data: Any, what: str, seed: int, collate: Collate | None, num_loader_workers: int) -> Rows:
    """Rows of the user's data. Raises JobRefused for data without rows."""
    if isinstance(data, Ordered):
        return OrderedRows(data, what, seed, collate, num_loader_workers)
    columns = _columns(data, what)
    if columns is None:
        rows: Rows = DatasetRows(data, seed, collate, num_loader_workers, what)
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
    """Columns of `data`, as a tuple or dict; None if it is a data set. Raises JobRefused if it is neither."""
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
