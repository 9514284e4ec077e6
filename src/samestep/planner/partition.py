"""Cut a chain of layers into stages and give each a run of workers, so that the busiest is done as early as can be.

    layers    0 1 2 | 3 4 5 6 7 | 8 9
    workers   0 1   | 2         | 3         cuts 3 and 8; the first stage on two workers

Two searches, and the smaller question decides: `dense` is exact for any workers and links; `fewest` is for many equal
workers. Uneven workers, where they are too many for the first, stand in blocks that are cut only at their ends.
What was left out is said in words with the result.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from samestep.planner.dense import best_splits, emptiest_split, work
from samestep.planner.fewest import fewest_splits, least_memory
from samestep.planner.rows import Chain, ChainCosts, Replication, Row
from samestep.planner.stages import Costs, Floats, NothingFits, Partition, Span, Split

DENSE = 1e9  # numbers touched by the exact search, about two seconds
FLAT = 1.2e7  # stages x group sizes that the other search keeps, 100 MB


def partition(
    chain: Chain, row: Row, microbatches: int, replication: Replication, max_stages: int | None = None
) -> Partition | NothingFits:
    """The best stages for a chain on a row of workers; times are seconds of a step with `microbatches`.

    `replication(parameter_bytes, workers)` is the seconds of a stage's gradient reduction over its workers.
    `max_stages` bounds the number of stages; None: as many as there are layers or workers.
    Raises PlanRefused when there is no microbatch.
    """
    return best_partition(ChainCosts(chain, row, microbatches, replication), max_stages)


def best_partition(costs: Costs, max_stages: int | None = None, dense: float = DENSE) -> Partition | NothingFits:
    """The same for costs of your own. `dense` bounds the work of the exact search."""
    most = min(max_stages or math.inf, costs.num_cuts, costs.num_workers)
    if work(costs.num_cuts, costs.num_workers, int(most)) <= dense:
        return _exact(costs, int(most))
    if costs.identical:
        return _of_equal_workers(costs, int(most))
    return _of_blocks(costs, int(most), dense)


def group_sizes(workers: int, most: int) -> list[int]:
    """All sizes up to `workers` when `most` allows them; else the small ones and those with few binary digits.

    With two digits: 1-8, 12, 16, 24, 32, ...
    """
    for digits in range(workers.bit_length(), 1, -1):
        sizes = [size for size in range(1, workers + 1) if size <= 8 or _digits(size) <= digits]
        if len(sizes) <= most:
            break
    return sizes if workers > 1 else [1]


def _exact(costs: Costs, most: int) -> Partition | NothingFits:
    splits = best_splits(costs, most)
    return _ordered(splits, "") if splits else _nothing_fits(emptiest_split(costs, most))


def _of_equal_workers(costs: Costs, most: int) -> Partition | NothingFits:
    pairs = costs.num_cuts * (costs.num_cuts + 1) // 2
    sizes = group_sizes(costs.num_workers, int(FLAT / pairs))
    splits = fewest_splits(costs, sizes, most)
    if not splits:
        return _nothing_fits(least_memory(costs, sizes, most))
    few = f"groups of other sizes than {', '.join(map(str, sizes))}, and " if len(sizes) < costs.num_workers else ""
    return _ordered(splits, few + "runners-up with other numbers of stages than 1, 2, 4, ... 32")


def _ordered(splits: Iterable[Split], pruned: str) -> Partition:
    best, *others = sorted(splits, key=lambda split: (split.bottleneck, len(split.stages)))
    return Partition(best, tuple(others), pruned)


def _nothing_fits(split: Split) -> NothingFits:
    return NothingFits(split.bottleneck, split)


def _digits(size: int) -> int:
    """Binary digits between the first one and the last 1, both included: 1 for 16, 2 for 24, 3 for 20."""
    return (size // (size & -size)).bit_length()


@dataclass(frozen=True)
class _Blocks:
    """`Costs` of runs of workers taken as one: block n is the workers edges[n] to edges[n+1]."""

    costs: Costs
    edges: Sequence[int]

    @property
    def num_cuts(self) -> int:
        return self.costs.num_cuts

    @property
    def num_workers(self) -> int:
        return len(self.edges) - 1

    @property
    def identical(self) -> bool:
        return False

    @property
    def deepest(self) -> int:
        return self.costs.deepest

    def workers(self, blocks: range) -> range:
        return range(self.edges[blocks.start], self.edges[blocks.stop])

    def seconds(self, workers: range) -> Floats:
        return self.costs.seconds(self.workers(workers))

    def fullness(self, workers: range, to_end: int) -> Floats:
        return self.costs.fullness(self.workers(workers), to_end)

    def crossing(self, worker: int) -> Floats:
        return self.costs.crossing(self.edges[worker])

    def unfold(self, split: Split) -> Split:
        return replace(split, stages=tuple(Span(s.first, s.last, self.workers(s.workers)) for s in split.stages))


def _of_blocks(costs: Costs, most: int, dense: float) -> Partition | NothingFits:
    size = next(
        size
        for size in range(2, costs.num_workers + 1)
        if size == costs.num_workers or work(costs.num_cuts, -(-costs.num_workers // size), most // size) <= dense
    )
    edges = [*range(0, costs.num_workers, size), costs.num_workers]
    blocks = _Blocks(costs, edges)
    found = _exact(blocks, most)
    if isinstance(found, NothingFits):
        return replace(found, split=blocks.unfold(found.split))
    return Partition(
        blocks.unfold(found.best),
        tuple(map(blocks.unfold, found.runners_up)),
        f"groups that begin or end inside a run of {size} workers",
    )
