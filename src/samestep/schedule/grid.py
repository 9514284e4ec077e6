"""The grid of a step as a schedule sees it: shards and sets of shards, stages and their segments.

segments     0    1    2 |  3  |  4    5    6          d dense, s sliced
             d    s    d |  d  |  d    s    d
stage        0           |  1  |  2
workers      0, 1        |  2  |  0, 1                 a worker may hold several stages
assign       2,2         |  4  |  1,3                  shards per worker, consecutive
"""

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class StageGrid:
    """One stage: who computes it, and what it consists of."""

    workers: tuple[int, ...]  # ranks of the group
    assign: tuple[int, ...]  # consecutive shards of each worker of the group
    sliced: tuple[bool, ...]  # per segment, in order; the first and the last are dense
    recompute: bool = False
    split: bool = False  # whether weight gradients come later than input gradients

    def shards_of(self, rank: int, num_shards: int) -> range:
        """The shards that worker `rank` computes here, of a step that has `num_shards`; empty for strangers."""
        if rank not in self.workers:
            return range(0)
        ends = list(accumulate(self.assign, initial=0))
        i = self.workers.index(rank)
        return range(min(ends[i], num_shards), min(ends[i + 1], num_shards))

    def worker_of(self, shard: int) -> int:
        """The worker that computes `shard` here."""
        ends = list(accumulate(self.assign))
        return next(worker for worker, end in zip(self.workers, ends, strict=True) if shard < end)


@dataclass(frozen=True)
class Grid:
    """All stages, and the join sets: consecutive shards that sliced segments compute jointly and that
    a pipeline passes on as one microbatch."""

    num_shards: int
    set_size: int  # shards per join set; the last set may be smaller
    stages: tuple[StageGrid, ...]

    @property
    def num_workers(self) -> int:
        return 1 + max(worker for stage in self.stages for worker in stage.workers)

    @property
    def sets(self) -> tuple[range, ...]:
        starts = range(0, self.num_shards, self.set_size)
        return tuple(range(start, min(start + self.set_size, self.num_shards)) for start in starts)

    def segments_of(self, stage: int) -> range:
        """The numbers of a stage's segments."""
        first = sum(len(other.sliced) for other in self.stages[:stage])
        return range(first, first + len(self.stages[stage].sliced))
