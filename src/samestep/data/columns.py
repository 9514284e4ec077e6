"""Columns that stay on disk until rows of them are asked for, and the files that they are in."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from samestep.errors import JobRefused


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


K = TypeVar("K")
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """Cache that drops the least recently used values when their cost exceeds a budget."""

    def __init__(self, budget: int, cost: Callable[[V], int]) -> None:
        self._budget, self._cost, self._spent = budget, cost, 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`; made by `make` if it is not kept."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._spent += self._cost(value)
        while self._spent > self._budget:
            self._spent -= self._cost(self._values.popitem(last=False)[1])
        return value


MAX_OPEN = 128  # files that one column keeps open: few systems allow a process more than 1,024


def matching(files: str | Path, suffix: str, who: str) -> list[Path]:
    """Files of a folder, a pattern or a path, sorted by path. Raises JobRefused if there are none."""
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
