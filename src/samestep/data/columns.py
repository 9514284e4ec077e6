"""Columns with rows first: tensors, arrays, and those that stay on disk until rows are asked for."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from samestep.data.loading import load
from samestep.errors import JobRefused

RowNumbers = Sequence[int] | Tensor  # a tensor is int64, 1-D


class Column(ABC):
    """An array on disk, in parts that are joined along the rows. Rows are taken as from an array."""

    def __init__(self, lengths: Sequence[int], row_shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._starts = np.cumsum([0, *lengths], dtype=np.int64)
        self.shape = (int(self._starts[-1]), *row_shape)
        self.dtype = dtype

    @abstractmethod
    def _part(self, number: int) -> NDArray[Any]:
        """The rows of a part, which need not be in memory."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """A copy of rows, by one number, a slice, or whole numbers in any order."""
        if isinstance(key, int | np.integer):
            return self[np.array([key])][0]
        rows = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.asarray(key)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise IndexError(f"rows are taken by whole numbers in one dimension, not by {rows.dtype} {rows.shape}")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}, which count from 0")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(parts):
            own = parts == part
            found[own] = self._part(int(part))[rows[own] - self._starts[part]]
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self._starts) - 1} parts, shape {self.shape}, {self.dtype}"


class TensorRows:
    """Tensors, arrays or columns on disk whose first dimension is the row: a tuple, or a mapping by name."""

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
        # Rows that are in memory are there sooner than a loader worker could hand them over.
        on_disk = any(isinstance(column, np.memmap | Column) for column in columns)
        self._num_loader_workers = num_loader_workers if on_disk else 0

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        if self._num_loader_workers:
            keys = (np.asarray(rows) for _, rows in requests)
            yield from load(_WholeBatches(self._batch), keys, _as_it_is, self._num_loader_workers)
            return
        for _, rows in requests:
            yield self._batch(rows)

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
    """Lets a loader worker make a batch at a time."""

    def __init__(self, batch: Callable[[Any], Any]) -> None:
        self._batch = batch

    def __getitems__(self, key: Any) -> Any:
        return self._batch(key)


def _as_it_is(batch: Any) -> Any:
    return batch


K = TypeVar("K")
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """What was used last, as far as the budget goes."""

    def __init__(self, budget: int, cost: Callable[[V], int]) -> None:
        self._budget, self._cost, self._spent = budget, cost, 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made where it is not kept."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._spent += self._cost(value)
        while self._spent > self._budget:
            self._spent -= self._cost(self._values.popitem(last=False)[1])
        return value


OPEN = 128  # files that one column keeps open: few systems allow a process more than 1,024


def matching(files: str | Path, suffix: str, who: str) -> list[Path]:
    """The files that are meant by a folder, a pattern or a file, sorted by path. Raises JobRefused for none."""
    if not isinstance(files, str | Path):
        raise JobRefused(f"{who} was given a {type(files).__name__}: give a folder, or a pattern as text")
    path = Path(files).absolute()
    if path.is_dir():
        found = [one for one in path.glob(f"*{suffix}") if not one.name.startswith(".")]
        nothing = f"the folder {path} holds no {suffix} file"
    elif path.is_file():
        found, nothing = [path], ""
    else:
        found = [one for one in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if one.is_file()]
        nothing = f"there is no file or folder {path}, and no file fits it as a pattern"
    if not found:
        raise JobRefused(f"{who}: {nothing}: look at the path (this process runs in {Path.cwd()})")
    return sorted(found, key=str)
