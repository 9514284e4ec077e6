"""`samestep.Ordered`: an iterable data set whose samples always come in the same order."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import Dataset

from samestep.data.loading import Collate, load_counted
from samestep.data.repeats import check_repeats
from samestep.data.row_order import RowNumbers
from samestep.errors import JobRefused, TrainingFailed
from samestep.numerics import random_streams

PATIENCE = 0.2  # seconds for rows beyond the promised ones


class Ordered:
    """An iterable data set with a declared order: `Job.data`, with shuffle=False.

    make: `make(epoch, start)` returns an iterator over the samples of an epoch from row `start` on. The
        samples and their order must depend on the two numbers alone: to shuffle, use a generator
        seeded by `epoch`. Every process makes its first sample twice, and compares. When training resumes
        from a checkpoint, and at every new epoch, a worker asks for the first row of its own shards.
    num_rows: rows of an epoch; later ones are never used, and reported once if there are any.

    A worker skips rows of other workers' shards, at the cost of making them. Each loader worker goes
    through all rows, so more than one (`num_loader_workers=1`) seldom helps. Held-out data
    (`Job.evaluate`) are always those of epoch 0.

    Raises JobRefused if `make` is no function or `num_rows` no number of rows. Training fails when `make` ends
    before `num_rows`.
    """

    def __init__(self, make: Callable[[int, int], Iterable[Any]], num_rows: int) -> None:
        if not callable(make):
            raise JobRefused(
                f"Ordered was given a {type(make).__name__}: give a function make(epoch, start) that returns an "
                "iterator over the samples from row `start` on"
            )
        if type(num_rows) is not int or num_rows < 1:
            raise JobRefused(f"Ordered has num_rows={num_rows!r}; it must be a whole number of at least 1")
        self.make, self.num_rows = make, num_rows


class OrderedRows:
    """Rows of an `Ordered` data set. Requests must be runs of consecutive rows."""

    def __init__(self, data: Ordered, what: str, seed: int, collate: Collate | None, num_loader_workers: int) -> None:
        self.num_rows = data.num_rows
        self.is_tried = False  # whether each process compares the first sample, and looks beyond the last one
        self._data, self._what, self._seed = data, what, seed
        self._collate, self._num_loader_workers = collate, num_loader_workers

    def take(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[Any]:
        return (batch for _, batch in self.take_counted(requests))

    def take_counted(self, requests: Iterator[tuple[int, RowNumbers]]) -> Iterator[tuple[int | None, Any]]:
        keys = ((epoch, int(rows[0]), int(rows[-1]) + 1) for epoch, rows in requests)
        runs = _Runs(self._data, self._what, self._seed, is_tried=self.is_tried)
        return load_counted(runs, keys, self._collate, self._num_loader_workers, is_tried=self.is_tried)


class _Runs(Dataset[Any]):
    """Runs of samples by (epoch, first row, end), from one iterator as long as keys go forward."""

    def __init__(self, data: Ordered, what: str, seed: int, *, is_tried: bool) -> None:
        self._data, self._what, self._seed = data, what, seed
        self._samples: Iterator[Any] = iter(())
        self._epoch, self._start, self._next = -1, 0, 0
        self._is_compared, self._is_ended = not is_tried, not is_tried

    def __getitems__(self, key: tuple[int, int, int]) -> list[Any]:
        epoch, start, end = key
        if epoch != self._epoch or start < self._next:
            random_streams.enter(self._seed, "order", epoch)
            self._samples = self._made(epoch, start)
            self._epoch, self._start, self._next = epoch, start, start
            if not self._is_compared:
                self._compare()
        while self._next < start:
            self._sample()
        found = [self._sample() for _ in range(start, end)]
        if end == self._data.num_rows and not self._is_ended:
            self._look_beyond()
        return found

    def _made(self, epoch: int, start: int) -> Iterator[Any]:
        return iter(self._data.make(0 if self._what == "evaluate" else epoch, start))

    def _compare(self) -> None:
        """Make the first sample twice, once for each process."""
        self._is_compared = True
        state = random_streams.leave()
        firsts = []
        for samples in (self._samples, self._made(self._epoch, self._start)):
            random_streams.enter(self._seed, "row", self._epoch, self._start)
            firsts.append(next(samples, None))
        check_repeats(firsts[0], firsts[1], f"row {self._start} of Job.{self._what}", self._data.make)
        random_streams.resume(state)
        random_streams.enter(self._seed, "order", self._epoch)
        self._samples = self._made(self._epoch, self._start)

    def _look_beyond(self) -> None:
        """Report rows beyond the promised ones, once for each process. One that does not end soon need not end."""
        self._is_ended = True
        count, until = 0, time.monotonic() + PATIENCE
        with random_streams.kept():
            for _ in self._samples:
                count += 1
                if count >= self._data.num_rows or time.monotonic() > until:
                    return
        if count:
            warnings.warn(
                f"Job.{self._what} has {count} rows more than num_rows={self._data.num_rows} promises, which are never "
                "used: give Ordered the number of rows that there are, unless you mean it",
                stacklevel=1,
            )

    def _sample(self) -> Any:
        """The next sample, with generators keyed by its row, whichever worker makes it."""
        random_streams.enter(self._seed, "row", self._epoch, self._next)
        try:
            sample = next(self._samples)
        except StopIteration:
            raise TrainingFailed(
                f"Job.{self._what} ended before row {self._next} of epoch {self._epoch}: make({self._epoch}, "
                f"{self._start}) gave {self._next - self._start} samples, and num_rows={self._data.num_rows} promises "
                f"{self._data.num_rows - self._start}: give Ordered the number of rows that there are"
            ) from None
        self._next += 1
        return sample
