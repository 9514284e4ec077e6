"""Rows of a data set: their order, and how a worker gets those of its shards.

Batch t of an epoch is rows tB .. (t+1)B-1 of a permutation keyed by (seed, epoch), whatever the
number of shards. Before each `data[i]` the generators are keyed by (seed, epoch, row), so random
augmentation depends neither on loader workers nor on who loads.
"""

import ctypes
import multiprocessing.connection
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from samestep import streams
from samestep.errors import JobRefused
from samestep.numerics import key
from samestep.unnamed import share_without_names

RowNumbers = Sequence[int] | Tensor  # a tensor is int64, 1-D
Collate = Callable[[list[Any]], Any]


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

    def epoch_of(self, step: int) -> int:
        return step // self.batches_per_epoch

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

    num_rows: int

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        """The batch of each (epoch, rows) request, in order."""
        ...


class TensorRows:
    """Tensors or arrays whose first dimension is the row: one, a tuple, or a mapping by name."""

    def __init__(self, data: Any, what: str = "data") -> None:
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

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        for _, rows in requests:
            index = rows if isinstance(rows, Tensor) else torch.as_tensor(rows)
            if isinstance(self._data, Mapping):
                yield {name: _rows_of(column, index) for name, column in self._data.items()}
            else:
                yield tuple(_rows_of(column, index) for column in self._data)


def _rows_of(column: Any, index: Tensor) -> Tensor:
    if isinstance(column, Tensor):
        return column.index_select(0, index)
    return torch.from_numpy(np.asarray(column[index.numpy()]))


class DatasetRows:
    """A map-style data set, through torch's DataLoader."""

    def __init__(self, data: Any, seed: int, collate: Collate | None, num_loader_workers: int) -> None:
        self.num_rows = len(data)
        self._data = _KeyedRows(data, seed)
        self._collate = collate
        self._num_loader_workers = num_loader_workers

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        # The sampler yields lists of (epoch, row); a data set may be indexed by anything.
        samples = ([(epoch, int(row)) for row in rows] for epoch, rows in requests)
        loader: DataLoader[Any] = DataLoader(
            self._data,
            batch_sampler=cast(Any, samples),
            collate_fn=self._collate or _collated,
            num_workers=self._num_loader_workers,
            worker_init_fn=partial(_begin_loading, os.getpid()),
            multiprocessing_context="fork" if self._num_loader_workers else None,
        )
        return _batches_of(iter(loader)) if self._num_loader_workers else iter(loader)


def _batches_of(loader: Any) -> Iterator[Any]:
    """Names the cause when a loader worker dies while it hands over a batch; torch does at other times."""
    loader._data_queue = _Handover(loader._data_queue, loader._workers)
    try:
        yield from loader
    except (ConnectionError, EOFError) as error:
        if str(error).startswith("Caught "):  # the data set's own
            raise
        raise RuntimeError(f"a DataLoader worker died: {type(error).__name__}: {error}") from None


class _Handover:
    """The queue from the loader workers, which waits for the end of one that breaks off.

    torch looks whether it has ended at once, finds it alive, and makes ten temporary files to see
    whether too many are open. The signal of the end then comes in the midst, and leaves one behind.
    """

    GRACE = 5.0  # seconds that a process may take to end once its sockets are closed

    def __init__(self, queue: Any, loaders: Sequence[Any]) -> None:
        self._queue, self._loaders = queue, loaders

    def get(self, timeout: float | None = None) -> Any:
        try:
            return self._queue.get(timeout=timeout)
        except (ConnectionError, EOFError):
            ended = multiprocessing.connection.wait([loader.sentinel for loader in self._loaders], self.GRACE)
            for loader in self._loaders:
                if loader.sentinel in ended:
                    loader.join()
            raise


class _KeyedRows(Dataset[Any]):
    def __init__(self, data: Any, seed: int) -> None:
        self._data, self._seed = data, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, row = key
        streams.enter(self._seed, "row", epoch, row)
        return self._data[row]


def _collated(samples: list[Any]) -> Any:
    """torch's own way, which does not always say that it is shapes that it fails at."""
    try:
        return default_collate(samples)
    except RuntimeError:
        shapes = sorted({str(_shapes(sample)) for sample in samples})
        if len(shapes) == 1:
            raise
        raise ValueError(
            f"samples have different shapes, {shapes[0]} and {shapes[1]}: make them equal in the data set, "
            "or join them in Job.collate_fn"
        ) from None


def _shapes(sample: Any) -> Any:
    """The shapes of a sample's tensors and arrays, in its own form."""
    if isinstance(sample, Mapping):
        return {name: _shapes(part) for name, part in sample.items()}
    if isinstance(sample, tuple | list):
        return [_shapes(part) for part in sample]
    return tuple(sample.shape) if hasattr(sample, "shape") else type(sample).__name__


PR_SET_PDEATHSIG = 1


def _begin_loading(parent: int, _loader: int) -> None:
    """In a loader worker. It may be killed at any time, and then must not leave anything behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the wish was made
        os._exit(1)
    # Tensors are handed over through a socket, which lies in /tmp unless its address is an abstract one.
    multiprocessing.connection.arbitrary_address = _abstract_address  # type: ignore[attr-defined]
    sys.excepthook = _show_unless_alone
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    share_without_names()


def _show_unless_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the thread behind that socket says when the worker is killed is no news to anyone."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _abstract_address(_family: str) -> str:
    return f"\0samestep-{os.getpid()}-{uuid.uuid4().hex}"


def as_rows(data: Any, what: str, seed: int, collate: Collate | None, num_loader_workers: int) -> Rows:
    """Make rows of whatever the user gave. Raises JobRefused for what has no rows."""
    columns = _columns(data, what)
    if columns is None:
        rows: Rows = DatasetRows(data, seed, collate, num_loader_workers)
    elif collate is not None and what == "data":
        raise JobRefused(
            f"Job.collate_fn joins the samples of a data set, Job.{what} is made of tensors that need none: "
            "leave collate_fn out, or give a data set"
        )
    else:
        rows = TensorRows(columns, what)
    if rows.num_rows == 0:
        raise JobRefused(f"Job.{what} has no rows: look at how it is loaded" + LEAVE_OUT * (what == "evaluate"))
    return rows


LEAVE_OUT = ", or leave it out"


def _columns(data: Any, what: str) -> Any:
    """A tuple or dict of tensors and arrays; None for a data set. Raises JobRefused for neither."""
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple | list) else []
    strangers = [type(part).__name__ for part in parts if not isinstance(part, Tensor | np.ndarray)]
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
            "or a map-style data set with __len__ and __getitem__"
        )
    return None
