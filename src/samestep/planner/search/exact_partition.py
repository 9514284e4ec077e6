"""The best split of a chain, exactly, for any workers: a dynamic programme over stages to the end, worker and cut.

    best[s, b, i] = min over e > b, j > i of  max(stage [i, j) on workers [b, e), cut j, best[s-1, e, j])

with s stages from cut i to the end, the first of which begins at worker b. s is in the table because memory depends
on it: under 1F1B the stage with s stages to the end keeps min(m, s) microbatches. Groups stand next to one another;
workers in front of the first and behind the last may stay idle. Costs may be any.
PipeDream (Narayanan et al., SOSP 2019, section 3.1) has the recurrence without s and for equal workers.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from samestep.planner.search.stage_costs import Floats, Split, StageCosts, StageSpan


def best_splits(costs: StageCosts, max_stages: int) -> list[Split]:
    """The best split for each number of stages that fits, fewest stages first; bottlenecks in seconds."""

    def value(workers: range, seconds: Floats, to_end: int) -> Floats:
        return np.where(costs.fullness(workers, to_end) <= 1, seconds, math.inf)

    return _ExactTable(costs, max_stages).fill(costs.seconds, value, costs.crossing).splits()


def emptiest_split(costs: StageCosts, max_stages: int) -> Split:
    """The split whose fullest worker is emptiest; its `bottleneck` is that worker's fullness."""

    def value(workers: range, nothing: Floats, to_end: int) -> Floats:
        return costs.fullness(workers, to_end)

    nothing = np.zeros(costs.num_cuts + 1)
    filled = _ExactTable(costs, max_stages).fill(lambda workers: nothing, value, lambda worker: nothing)
    return min(filled.splits(), key=lambda split: split.bottleneck)


def table_work(cuts: int, workers: int, max_stages: int) -> float:
    """About how many numbers filling the table touches."""
    pairs = workers * (workers + 1) / 2
    return pairs * max(1, max_stages / 3) * (cuts * cuts + 2000)


class _ExactTable:
    def __init__(self, costs: StageCosts, max_stages: int) -> None:
        self.cuts, self.workers = costs.num_cuts, costs.num_workers
        self.levels = min(max_stages, self.cuts, self.workers)
        shape = (self.levels + 1, self.workers + 1, self.cuts + 1)
        self.best = np.full(shape, math.inf)
        self.best[0, :, self.cuts] = 0.0
        self.next_worker: NDArray[np.int32] = np.zeros(shape, np.int32)
        self.next_cut: NDArray[np.int32] = np.zeros(shape, np.int32)

    def fill(
        self,
        seconds: Callable[[range], Floats],
        value: Callable[[range, Floats, int], Floats],
        crossing: Callable[[int], Floats],
    ) -> "_ExactTable":
        tails: dict[int, Floats] = {self.workers: self.best[:, self.workers]}
        for begin in reversed(range(self.workers)):
            for end in range(begin + 1, self.workers + 1):
                workers = range(begin, end)
                alone = seconds(workers)
                for level in range(1, min(self.levels, self.workers - end + 1) + 1):
                    self._improve(level, begin, end, value(workers, alone, level), tails[end][level - 1])
            if begin:
                tails[begin] = np.maximum(self.best[:, begin], crossing(begin))
        return self

    def _improve(self, level: int, begin: int, end: int, stage: Floats, tail: Floats) -> None:
        both = np.maximum(stage, tail)
        cut = both.argmin(axis=1)
        found = both[np.arange(len(cut)), cut]
        better = found < self.best[level, begin]
        self.best[level, begin][better] = found[better]
        self.next_worker[level, begin][better] = end
        self.next_cut[level, begin][better] = cut[better]

    def splits(self) -> list[Split]:
        starts = self.best[1:, :, 0].argmin(axis=1)
        ends = [(level, int(begin)) for level, begin in enumerate(starts, start=1)]
        return [self._split(level, begin) for level, begin in ends if self.best[level, begin, 0] < math.inf]

    def _split(self, stages: int, begin: int) -> Split:
        spans, cut, worker = [], 0, begin
        for level in range(stages, 0, -1):
            at = level, worker, cut
            end, end_cut = int(self.next_worker[at]), int(self.next_cut[at])
            spans.append(StageSpan(cut, end_cut - 1, range(worker, end)))
            cut, worker = end_cut, end
        return Split(tuple(spans), float(self.best[stages, begin, 0]))
