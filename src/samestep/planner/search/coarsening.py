"""Coarsening: layers and workers taken in runs, for partitions that are too large to search exactly.

layers    0 1 2 3 4 5 6 7 8 9        cuts   0, 3, 7, 10: stages begin and end here
workers   0 1 2 3 4 5                edges  0, 2, 4, 6: so do groups
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from samestep.planner.search.stage_costs import Floats, Split, StageCosts, StageSpan


@dataclass(frozen=True)
class CoarseCosts:
    """Stage costs: worker n stands for workers edges[n] to edges[n+1] of `costs`, cut c for its cut cuts[c]."""

    costs: StageCosts  # of these cuts only
    cuts: Sequence[int]
    edges: Sequence[int]
    identical: bool = False

    @property
    def num_cuts(self) -> int:
        return len(self.cuts) - 1

    @property
    def num_workers(self) -> int:
        return len(self.edges) - 1

    @property
    def deepest(self) -> int:
        return self.costs.deepest

    def workers(self, runs: range) -> range:
        return range(self.edges[runs.start], self.edges[runs.stop])

    def seconds(self, workers: range) -> Floats:
        return self.costs.seconds(self.workers(workers))

    def fullness(self, workers: range, to_end: int) -> Floats:
        return self.costs.fullness(self.workers(workers), to_end)

    def crossing(self, worker: int) -> Floats:
        return self.costs.crossing(self.edges[worker])

    def only(self, cuts: Sequence[int]) -> StageCosts:
        return replace(self, costs=self.costs.only(cuts), cuts=[self.cuts[cut] for cut in cuts])

    def unfold(self, split: Split) -> Split:
        """The split in terms of layers and workers."""
        stages = (
            StageSpan(self.cuts[s.first], self.cuts[s.last + 1] - 1, self.workers(s.workers)) for s in split.stages
        )
        return replace(split, stages=tuple(stages))

    def left_out(self, whole: StageCosts) -> str:
        """The splits that are not searched, in words."""
        groups = f"groups that begin or end inside {self.num_workers} runs of workers"
        cuts = f", and all but {self.num_cuts - 1} of the {whole.num_cuts - 1} cuts"
        return groups + (cuts if self.num_cuts < whole.num_cuts else "")


def even_cuts(costs: StageCosts, most: int) -> list[int]:
    """At most `most` cuts besides the first one, with about equal seconds of work in each run between two of them."""
    if costs.num_cuts <= most:
        return list(range(costs.num_cuts + 1))
    done = costs.seconds(range(1))[0, 1:]  # until each cut
    inner = np.searchsorted(done, done[-1] * np.arange(1, most) / most) + 1
    return sorted({0, *map(int, inner), costs.num_cuts})


def even_edges(workers: int, runs: int) -> list[int]:
    """Ends of `runs` runs of about equal length."""
    return [run * workers // runs for run in range(runs + 1)]
