"""The best split for many equal workers, by bisection: how few workers are enough to finish within T seconds?

    size(i, j)   = the smallest group for which the stage [i, j) fits and takes at most T, as does the cut in front
    need[s, i]   = min over j of  size(i, j) + need[s-1, j]         workers for s stages from cut i to the end

T is enough when need[s, 0] is at most the number of workers; the least T is found by bisection. Each try goes over
L^2/2 stages, whatever the number of workers. From `deepest` stages to the end on memory stays the same, so one more
pass over the cuts covers all greater numbers of stages.

Assumed: equal workers; the cut's seconds are those in front of worker 1; a larger group never needs more memory
per worker. The bottleneck found is at most `PRECISION` above the best of the group sizes that were allowed.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samestep.planner.search.stage_costs import Floats, Split, StageCosts, StageSpan

PRECISION = 1e-6
COARSE = 1e-3  # for the runners-up
ROUGH = 1e-2  # for the memory that would be enough
MOST_RUNNERS_UP = 32  # stages


Indices = NDArray[np.integer[Any]]


def fewest_splits(costs: StageCosts, sizes: Sequence[int], max_stages: int) -> list[Split]:
    """The best split first, then the best for 1, 2, 4, ... 32 stages (within COARSE); empty when nothing fits."""
    search = _Search(costs, sizes, max_stages)
    best = search.least(None, PRECISION)
    if best is None:
        return []
    most = min(MOST_RUNNERS_UP, search.levels)
    counts = [1 << power for power in range(most.bit_length()) if 1 << power != len(best.stages)]
    others = [search.least(count, COARSE, best.bottleneck / (1 + PRECISION)) for count in counts]
    return [best, *(split for split in others if split is not None)]


def least_memory(costs: StageCosts, sizes: Sequence[int], max_stages: int) -> Split:
    """A split that fits little memory, for when nothing fits; its `bottleneck` is the fullness of its fullest worker.

    Every split of the allowed sizes that fits ROUGH less is fuller than this one when each stage is taken to keep
    the next power of two of microbatches; so the memory named is enough, and may be more than the least.
    """
    low, high = 1.0, 2.0
    found = None
    while found is None or high > low * (1 + ROUGH):
        tried = high if found is None else math.sqrt(low * high)
        split = _Search(costs, sizes, max_stages, room=tried).least(None, math.inf)
        if split is None:
            low, high = tried, high * 2 if found is None else high
        else:
            found, high = Split(split.stages, tried), tried
    return found


class _Search:
    """A search over thresholds. `room` is the factor by which the workers' memory is taken to be larger.

    Stages are stored row by row in flat arrays: those from cut i at rows[i] to rows[i+1].
    """

    def __init__(self, costs: StageCosts, sizes: Sequence[int], max_stages: int, room: float = 1.0) -> None:
        self.cuts, self.workers = costs.num_cuts, costs.num_workers
        self.first, self.last = np.triu_indices(self.cuts + 1, k=1)
        self.rows = np.searchsorted(self.first, np.arange(self.cuts + 1))
        self.groups = [range(size) for size in sorted(sizes)]
        self.sizes = np.array([*map(len, self.groups), self.workers + 1], np.int32)  # the last one: too many
        self.seconds = np.stack([self._pick(costs.seconds(group)) for group in self.groups])
        self.between = costs.crossing(1) if self.workers > 1 else np.zeros(self.cuts + 1)
        self.levels = min(max_stages, self.cuts, self.workers)
        self.depth = min(costs.deepest, self.levels)
        kept = [level if room == 1 else min(self.depth, _power_from(level)) for level in range(1, self.depth + 1)]
        fitting = {level: self._fitting(costs, level, room) for level in sorted(set(kept))}
        self.fitting = [fitting[level] for level in kept]

    def _pick(self, matrix: Floats) -> Floats:
        picked: Floats = np.broadcast_to(matrix, (self.cuts + 1, self.cuts + 1))[self.first, self.last]
        return picked

    def _fitting(self, costs: StageCosts, to_end: int, room: float) -> Indices | None:
        """Index of each stage's smallest size with enough memory, in a flat [size, stage] array; None when one worker
        always has enough."""
        short = np.zeros(len(self.first), np.uint16)
        for group in self.groups:
            too_full = self._pick(costs.fullness(group, to_end)) > room
            if not too_full.any():
                break
            short += too_full
        return short * np.int64(len(short)) + np.arange(len(short)) if short.any() else None

    def least(self, stages: int | None, precision: float, low: float = 0.0) -> Split | None:
        """The split into `stages` stages (None: any number) with the least bottleneck; None when there is none.

        `low` is known to be no more than the least.
        """
        found = self.within(math.inf, stages)
        middle = low * (1 + precision)
        while found is not None and found.bottleneck > low * (1 + precision) and precision < math.inf:
            better = self.within(middle, stages)
            low, found = (middle, found) if better is None else (low, better)
            middle = (low + found.bottleneck) / 2
        return found

    def within(self, threshold: float, stages: int | None) -> Split | None:
        """A split within `threshold` seconds on as few workers as possible."""
        table = _ThresholdTable(self, threshold)
        if stages is not None:
            table.grow(stages)
            return table.split(stages) if table.needs[stages][0] <= self.workers else None
        table.grow(self.depth)
        if self.levels == min(self.cuts, self.workers):
            table.close()
        else:
            table.grow(self.levels)
        enough = [level for level, need in enumerate(table.needs) if need[0] <= self.workers]
        return table.split(enough[0]) if enough else None

    def bottleneck(self, spans: Sequence[StageSpan]) -> float:
        at = [int(self.rows[span.first]) + span.last - span.first for span in spans]
        kinds = [int(np.searchsorted(self.sizes, len(span.workers))) for span in spans]
        stages = max(float(self.seconds[kind, pair]) for kind, pair in zip(kinds, at, strict=True))
        return max(stages, *(float(self.between[span.first]) for span in spans[1:]), 0.0)


def _power_from(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


class _ThresholdTable:
    """Workers needed within one threshold: `needs[s][i]` for s stages from cut i; the last one, once closed, for
    as many stages as are best."""

    def __init__(self, search: _Search, threshold: float) -> None:
        self.search = search
        self.nobody = search.workers + 1
        self.open_cuts = search.between <= threshold
        none = np.full(search.cuts + 1, self.nobody, np.int32)
        none[-1] = 0
        self.needs = [none]
        self.closed = False
        self.fast = search.seconds <= threshold
        self.smallest = self._smallest()

    def _smallest(self) -> Indices:
        """[k, stage]: of the sizes from the k-th on the smallest that is fast enough; only k = 0 if memory is ample."""
        sizes = self.search.sizes
        if all(fitting is None for fitting in self.search.fitting):
            return sizes[np.where(self.fast.any(axis=0), self.fast.argmax(axis=0), len(self.fast))][None]
        found = np.full((len(sizes), self.fast.shape[1]), self.nobody, np.int32)
        for kind in reversed(range(len(self.fast))):
            np.copyto(found[kind], found[kind + 1])
            found[kind][self.fast[kind]] = sizes[kind]
        return found

    def sizes_at(self, level: int) -> Indices:
        """The group size that each stage needs with `level` stages to the end."""
        fitting = self.search.fitting[min(level, self.search.depth) - 1]
        return self.smallest[0] if fitting is None else self.smallest.take(fitting)

    def tail(self, level: int) -> Indices:
        """Workers for `level` stages behind each cut, too many where the cut itself is too slow."""
        return np.where(self.open_cuts, self.needs[level], self.nobody)

    def grow(self, levels: int) -> None:
        for level in range(len(self.needs), levels + 1):
            both = self.sizes_at(level) + self.tail(level - 1)[self.search.last]
            need = np.minimum.reduceat(both, self.search.rows[:-1])
            self.needs.append(np.append(np.minimum(need, self.nobody), self.nobody))

    def close(self) -> None:
        """One more row: `depth` stages or more to the end."""
        sizes = self.sizes_at(self.search.depth)
        need = self.needs[self.search.depth].copy()
        tail = self.tail(self.search.depth)
        for cut in reversed(range(self.search.cuts)):
            row = slice(self.search.rows[cut], self.search.rows[cut + 1])
            need[cut] = min(need[cut], (sizes[row] + tail[cut + 1 :]).min())
            tail[cut] = need[cut] if self.open_cuts[cut] else self.nobody
        self.needs.append(need)
        self.closed = True

    def split(self, level: int) -> Split:
        """Walk the table from cut 0 on."""
        spans: list[StageSpan] = []
        cut, worker = 0, 0
        while cut < self.search.cuts:
            above = self.closed and level == len(self.needs) - 1
            if above and self.needs[level][cut] == self.needs[level - 1][cut]:
                level, above = level - 1, False
            row = slice(self.search.rows[cut], self.search.rows[cut + 1])
            sizes, behind = self.sizes_at(level)[row], level if above else level - 1
            step = int((sizes + self.tail(behind)[cut + 1 :]).argmin())
            spans.append(StageSpan(cut, cut + step, range(worker, worker + int(sizes[step]))))
            cut, worker, level = cut + step + 1, worker + int(sizes[step]), behind
        return Split(tuple(spans), self.search.bottleneck(spans))
