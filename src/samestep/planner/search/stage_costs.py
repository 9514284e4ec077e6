"""Partitions into stages, and the protocol of costs that their search needs.

A chain of L layers has L+1 cuts: cut i is before layer i, cut L behind the last. A stage is the layers from
cut i to cut j > i on a run of neighbouring workers; a matrix over stages is indexed [i, j].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class StageCosts(Protocol):
    """Costs of stages and cuts. Matrices are (L+1, L+1) or broadcast to it; entries that are no stage are `inf`."""

    @property
    def num_cuts(self) -> int:
        """L: stages are between the cuts 0 and L."""

    @property
    def num_workers(self) -> int: ...

    @property
    def identical(self) -> bool:
        """Whether only the number of a stage's workers counts, not which they are."""

    @property
    def deepest(self) -> int:
        """Stages to the end (the stage itself counted) from which on `fullness` is constant; 1 where it always is."""

    def seconds(self, workers: range) -> Floats:
        """Seconds that each stage keeps these workers busy."""

    def fullness(self, workers: range, to_end: int) -> Floats:
        """Bytes needed over bytes available, of the fullest of these workers: a stage fits when it is at most 1.

        `to_end` counts the stages to the end of the pipeline, this one included.
        """

    def crossing(self, worker: int) -> Floats:
        """(L+1,) seconds of each cut's transfers, when the stage behind it begins at `worker`; 0 at cut L."""

    def only(self, cuts: Sequence[int]) -> "StageCosts":
        """The costs with these cuts only; the first and the last one are among them."""


@dataclass(frozen=True)
class StageSpan:
    """One stage: layers `first` to `last`, both included, on a run of workers that share its work."""

    first: int
    last: int
    workers: range

    def __str__(self) -> str:
        who = f"worker {self.workers[0]}" if len(self.workers) == 1 else f"workers {self.workers[0]}-{self.workers[-1]}"
        return f"layers {self.first}-{self.last} on {who}"


@dataclass(frozen=True)
class Split:
    """A way to cut the chain. `bottleneck` is the seconds of the busiest stage or of the slowest cut."""

    stages: tuple[StageSpan, ...]
    bottleneck: float

    def __str__(self) -> str:
        return f"{self.bottleneck:.6g} s: " + "; ".join(map(str, self.stages))


@dataclass(frozen=True)
class Partition:
    """The best split, and the best one for each number of stages, the best first.

    `pruned` names in words the splits left out of the search; empty when the best is the best of all.
    """

    best: Split
    runners_up: tuple[Split, ...]
    pruned: str = ""


@dataclass(frozen=True)
class NothingFits:
    """No searched split fits the workers' memory. With `factor` times every worker's memory, `split` would.

    `pruned` is as in Partition; empty when no split fits less.
    """

    factor: float
    split: Split
    pruned: str = ""

    def __str__(self) -> str:
        aside = f" (left aside: {self.pruned})" if self.pruned else ""
        return (
            f"no partition fits{aside}: the closest, {'; '.join(map(str, self.split.stages))}, needs {self.factor:.3g} "
            "times the workers' memory: give them that, or more workers, or recompute activations, or make the "
            "microbatches smaller"
        )
