"""Batches that loader workers load ahead, through torch's DataLoader."""

import multiprocessing.connection
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from samestep.data.repeats import CountedCollate
from samestep.system.file_positions import take_own_positions
from samestep.system.nameless_memory import share_without_names
from samestep.system.processes import die_with_parent

Collate = Callable[[list[Any]], Any]


def load(data: Dataset[Any], keys: Iterator[Any], collate: Collate | None, num_loader_workers: int) -> Iterator[Any]:
    """The batch of every key, in order: a list of what `data[i]` takes, or what `data.__getitems__` does."""
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_sampler=cast(Any, keys),
        collate_fn=collate or collated,
        num_workers=num_loader_workers,
        worker_init_fn=partial(_begin_loading, os.getpid()),
        multiprocessing_context="fork" if num_loader_workers else None,
    )
    return _batches_of(iter(loader)) if num_loader_workers else iter(loader)


def load_counted(
    data: Dataset[Any], keys: Iterator[Any], collate: Collate | None, num_loader_workers: int, *, is_tried: bool
) -> Iterator[tuple[int | None, Any]]:
    """As `load`, each batch with the number of rows that a collate function of the user's own has kept."""
    if collate is None:
        return ((None, batch) for batch in load(data, keys, None, num_loader_workers))
    return load(data, keys, CountedCollate(collate, is_tried=is_tried), num_loader_workers)


def _batches_of(loader: Any) -> Iterator[Any]:
    """Batches of a loader; names the cause if a loader worker dies while sending one, as torch does at other times."""
    loader._data_queue = _Handover(loader._data_queue, loader._workers)
    try:
        yield from loader
    except (ConnectionError, EOFError) as error:
        if str(error).startswith("Caught "):  # the data set's own
            raise
        raise RuntimeError(f"a DataLoader worker died: {type(error).__name__}: {error}") from None


class _Handover:
    """Queue from the loader workers; when a message breaks off, it waits for its sender's end.

    torch checks at once whether the sender has ended, finds it alive, and creates ten temporary files to see
    whether too many are open. SIGCHLD then interrupts it, and one file stays behind.
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


def collated(samples: list[Any]) -> Any:
    """Collate samples as torch does, with an error that names the shapes if they differ."""
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


def _begin_loading(parent: int, _loader: int) -> None:
    """Initialize a loader worker. It may be killed at any time, and must then leave nothing behind."""
    die_with_parent(parent)
    take_own_positions()
    # Tensors are sent through a socket, which is a file in /tmp unless its address is an abstract one.
    multiprocessing.connection.arbitrary_address = _abstract_address  # type: ignore[attr-defined]
    sys.excepthook = _show_unless_alone
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    share_without_names()


def _show_unless_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook that ignores the error of the socket's thread when the worker is killed."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _abstract_address(_family: str) -> str:
    return f"\0samestep-{os.getpid()}-{uuid.uuid4().hex}"
