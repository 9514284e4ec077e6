"""Cut a chain of layers into stages and give each a run of workers, so that the busiest finishes as early as possible.

    layers    0 1 2 | 3 4 5 6 7 | 8 9
    workers   0 1   | 2         | 3         cuts 3 and 8; the first stage on two workers

Two searches: `exact_partition` is exact for any workers and links, and is used where it is affordable; `bisection` is
for many equal workers. Uneven workers that are too many for the first are taken in runs, and so are the layers
(`coarsening`). The result names in words the splits that were left out.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from samestep.planner.search.bisection import fewest_splits, least_memory
from samestep.planner.search.coarsening import CoarseCosts, even_cuts, even_edges
from samestep.planner.search.exact_partition import best_splits, emptiest_split, table_work
from samestep.planner.search.pipeline_costs import LayerCosts, PipelineCosts, Replication, WorkerRow
from samestep.planner.search.stage_costs import NothingFits, Partition, Split, StageCosts

DENSE = 1e9  # numbers touched by the exact search, about two seconds
MOST_CUTS = 100  # of the search for uneven workers
FLAT = 1.2e7  # stages x group sizes that the other search keeps, 100 MB


def partition(
    chain: LayerCosts, row: WorkerRow, microbatches: int, replication: Replication, max_stages: int | None = None
) -> Partition | NothingFits:
    """The best stages for a chain on a row of workers; times are seconds of a step with `microbatches`.

    `replication(parameter_bytes, workers)` is the seconds of a stage's gradient reduction over its workers.
    `max_stages` bounds the number of stages; None: as many as there are layers or workers.
    Raises PlanRefused when there is no microbatch.
    """
    return best_partition(PipelineCosts(chain, row, microbatches, replication), max_stages)


def best_partition(costs: StageCosts, max_stages: int | None = None, dense: float = DENSE) -> Partition | NothingFits:
    """The best stages for any costs. `dense` bounds the work of the exact search."""
    most = min(max_stages or math.inf, costs.num_cuts, costs.num_workers)
    if table_work(costs.num_cuts, costs.num_workers, int(most)) <= dense:
        return _exact_partition(costs, int(most))
    if costs.identical:
        return _bisected_partition(costs, int(most))
    return _coarse_partition(costs, int(most), dense)


def group_sizes(workers: int, most: int) -> list[int]:
    """Group sizes: all up to `workers` when `most` allows them; else the small ones and those with few binary digits.

    With two digits: 1-8, 12, 16, 24, 32, ...
    """
    for digits in range(workers.bit_length(), 1, -1):
        sizes = [size for size in range(1, workers + 1) if size <= 8 or _digits(size) <= digits]
        if len(sizes) <= most:
            break
    return sizes if workers > 1 else [1]


def _exact_partition(costs: StageCosts, most: int, pruned: str = "") -> Partition | NothingFits:
    splits = best_splits(costs, most)
    if splits:
        return _ordered(splits, pruned)
    closest = emptiest_split(costs, most)
    return NothingFits(closest.bottleneck, closest, pruned)


def _bisected_partition(costs: StageCosts, most: int) -> Partition | NothingFits:
    pairs = costs.num_cuts * (costs.num_cuts + 1) // 2
    sizes = group_sizes(costs.num_workers, int(FLAT / pairs))
    splits = fewest_splits(costs, sizes, most)
    if not splits:
        split = least_memory(costs, sizes, most)
        return NothingFits(split.bottleneck, split, "splits of the same kind that need somewhat less")
    few = f"groups of other sizes than {', '.join(map(str, sizes))}, and " if len(sizes) < costs.num_workers else ""
    return _ordered(splits, few + "runners-up with other numbers of stages than 1, 2, 4, ... 32")


def _ordered(splits: Iterable[Split], pruned: str) -> Partition:
    best, *others = sorted(splits, key=lambda split: (split.bottleneck, len(split.stages)))
    return Partition(best, tuple(others), pruned)


def _digits(size: int) -> int:
    """Binary digits between the first one and the last 1, both included: 1 for 16, 2 for 24, 3 for 20."""
    return (size // (size & -size)).bit_length()


def _coarse_partition(costs: StageCosts, most: int, dense: float) -> Partition | NothingFits:
    cuts = even_cuts(costs, MOST_CUTS)
    affordable = (
        n for n in range(costs.num_workers, 1, -1) if table_work(len(cuts), n, min(most, n, len(cuts))) <= dense
    )
    runs = CoarseCosts(costs.only(cuts), cuts, even_edges(costs.num_workers, next(affordable, 1)))
    found = _exact_partition(runs, most, runs.left_out(costs))
    if isinstance(found, NothingFits):
        return replace(found, split=runs.unfold(found.split))
    return replace(found, best=runs.unfold(found.best), runners_up=tuple(map(runs.unfold, found.runners_up)))
