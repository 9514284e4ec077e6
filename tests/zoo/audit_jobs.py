"""Jobs that go wrong while they run, in ways that workers see when they hold their states together."""

from collections.abc import Iterator
from typing import Any

import torch
from own_jobs import around, is_second, job
from torch import Tensor, nn

import samestep
from samestep.data.row_order import RowOrder
from samestep.parallel.execution.executor import Executor

SECOND = [False]  # whether this process is the second worker, for methods that know no transport


def know_who() -> None:
    def load(original: Any, self: Executor, action: Any, state: Any) -> None:
        SECOND[0] = is_second(self)
        original(self, action, state)

    around(Executor, "load", load)


def statistics_of_its_own() -> samestep.Job:
    """#11: a worker keeps the statistics of its own last shard instead of the common ones."""

    class Normed(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    def merge(original: Any, self: Executor, action: Any, state: Any) -> None:
        original(self, action, state)
        if is_second(self):
            own = max(self.plan.touched(1, len(state.rows)))
            for i, name in enumerate(self.buffers.names):
                if name.endswith("running_mean"):
                    self.buffers.set(i, self.buffers._board(own, i).clone())

    around(Executor, "merge_buffers", merge)
    return job(model=Normed)


def another_shuffle() -> samestep.Job:
    """#12: every worker shuffles by a seed of its own."""

    def permutation(original: Any, self: RowOrder, epoch: int) -> Tensor:
        return original(self, epoch + 1000 * SECOND[0])  # type: ignore[no-any-return]

    know_who()
    around(RowOrder, "permutation", permutation)
    return job()


def batches_of(change: str) -> samestep.Job:
    """#12, #13: a worker's loader gives a batch `twice`, or one is `lost`, as after a retry."""

    def batches(original: Any, self: RowOrder, first_step: int) -> Iterator[tuple[int, Tensor]]:
        for number, found in enumerate(original(self, first_step)):
            if SECOND[0] and number == 2:
                if change == "lost":
                    continue
                yield found
            yield found

    know_who()
    around(RowOrder, "batches", batches)
    return job()


def last_rows_padded() -> samestep.Job:
    """#13: where rows do not go up in batches, the first ones of the epoch fill the last batch, as a sampler does."""

    def batches(original: Any, self: RowOrder, first_step: int) -> Iterator[tuple[int, Tensor]]:
        for epoch, rows in original(self, first_step):
            if len(rows) < self.batch_size:
                rows = torch.cat([rows, self.permutation(epoch)])[: self.batch_size]
            yield epoch, rows

    around(RowOrder, "batches", batches)
    around(RowOrder, "batch_rows", lambda original, self, step: self.batch_size)
    inputs, labels = job().data
    return job(data=(inputs[:60], labels[:60]))
