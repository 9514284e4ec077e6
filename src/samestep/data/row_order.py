"""Order of rows: which rows of a data set make up which batch.

Batch t of an epoch is rows tB .. (t+1)B-1 of a permutation keyed by (seed, epoch), whatever the
number of shards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.numerics.numerics import key

RowNumbers = Sequence[int] | Tensor  # a tensor is int64, 1-D


@dataclass(frozen=True)
class RowOrder:
    """Assignment of rows to batches."""

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
        """Rows in the order of an epoch. int64, (num_rows,)."""
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
