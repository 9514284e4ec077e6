"""The grid of a step, as schedules see it: shards and sets of shards, stages and their segments.

segments     0    1    2 |  3  |  4    5    6          d dense, s sliced
             d    s    d |  d  |  d    s    d
stage        0           |  1  |  2
workers      0, 1        |  2  |  0, 1                 a worker may hold several stages
assign       2,2         |  4  |  1,3                  shards per worker, consecutive
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from samestep.errors import PlanRefused


def consecutive_ranges(counts: Sequence[int], stop: int | None = None) -> list[range]:
    """Ranges of these lengths, one after the other from 0 on; numbers from `stop` on are left out."""
    ends = [end if stop is None else min(end, stop) for end in accumulate(counts, initial=0)]
    return [range(a, b) for a, b in pairwise(ends)]


@dataclass(frozen=True)
class StageGrid:
    """One stage: its workers, their shards, and its segments."""

    workers: tuple[int, ...]  # ranks of the group
    assign: tuple[int, ...]  # consecutive shards of each worker of the group
    sliced: tuple[bool, ...]  # per segment, in order; the first and the last are dense
    recompute: bool = False
    split: bool = False  # whether weight gradients come later than input gradients

    def shards_by_worker(self, num_shards: int) -> dict[int, range]:
        """The shards that each worker of the group computes, in a step that has `num_shards`."""
        return dict(zip(self.workers, consecutive_ranges(self.assign, num_shards), strict=True))

    def shards_of(self, rank: int, num_shards: int) -> range:
        """The shards that worker `rank` computes in this stage; empty for workers of other stages."""
        return self.shards_by_worker(num_shards).get(rank, range(0))


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

    def meeting_shards(self, rank: int) -> tuple[int, ...]:
        """A worker's shards, all at once, for layers in which shards meet. Raises PlanRefused where they cannot."""
        if len(self.stages) > 1 or any(self.stages[0].sliced):
            raise PlanRefused(
                "shards that meet in synchronized batch normalization need the whole model on every worker; this plan "
                f"has {len(self.stages)} stages and {sum(map(sum, (s.sliced for s in self.stages)))} sliced segments: "
                "use --plan data, or a job without sync_batchnorm"
            )
        if self.stages[0].recompute:
            raise PlanRefused(
                "shards that meet in synchronized batch normalization cannot recompute: drop recomputation"
            )
        return tuple(self.stages[0].shards_of(rank, self.num_shards))
