"""The arithmetic of a meeting of logical workers, on flat tensors.

    mean      theta = (theta_0 + theta_1 + ...) / L, the sum in the tree's order   local SGD, Stich 2019
    outer     g = before - mean, v = m v + g, theta = before - lr (g + m v)        DiLoCo, Douillard et al. 2023

`before` are the parameters that all had after the last meeting. With lr 1 and momentum 0, outer is the mean.
"""

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from samestep.errors import Disagreement
from samestep.numerics.policy import Nesterov

OBSERVED = struct.Struct("<qdq")  # staleness, divergence, meetings


@dataclass
class Outer:
    """The outer optimizer over one flat piece of the parameters."""

    how: Nesterov
    before: Tensor  # what all had after the last meeting
    velocity: Tensor

    def step(self, mean: Tensor) -> None:
        """Turn the mean into the new common value, in place."""
        moved = self.before - mean
        self.velocity.mul_(self.how.momentum).add_(moved)
        self.before.sub_(moved.add_(self.velocity, alpha=self.how.momentum), alpha=self.how.lr)
        mean.copy_(self.before)


def distance_from_mean(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The norm of a logical worker's difference from the mean, over the mean's. Pairs (own, mean)."""
    off = size = 0.0
    for own, mean in pairs:
        there = mean.double()
        off += float((own.double() - there).square().sum())
        size += float(there.square().sum())
    return math.sqrt(off / size) if size else math.inf if off else 0.0


@dataclass
class ObservedBound:
    """The bound as a run has observed it. Every read of a parameter says how many steps it is from a common value."""

    bound: int  # steps
    staleness: int = 0  # the most that was read
    divergence: float = 0.0  # the largest distance from the mean, before a meeting
    meetings: int = 0

    def read(self, worker: int, taken: int, wanted: int) -> None:
        """Logical worker `worker` begins a step with parameters `taken` steps from the last common ones.

        Raises Disagreement where that is not what the step's number says, or not below the bound.
        """
        if taken != wanted or taken >= self.bound:
            raise Disagreement(
                f"logical worker {worker} reads parameters {taken} steps after the last meeting, and the step's number "
                f"says {wanted}, of at most {self.bound - 1}"
            )
        self.staleness = max(self.staleness, taken)

    def met(self, divergence: float) -> None:
        self.divergence = max(self.divergence, divergence)

    def agreed(self, taken: Iterable[int]) -> None:
        """All logical workers come to a meeting. Raises Disagreement where one has taken more steps than another."""
        found = list(taken)
        if len(set(found)) > 1:
            raise Disagreement(
                f"logical worker {found.index(max(found))} comes to a meeting after {max(found)} steps, and logical "
                f"worker {found.index(min(found))} after {min(found)}: all must have taken as many"
            )

    def over_all(self, exchange: Callable[[bytes], list[bytes]]) -> dict[str, float]:
        """The largest observations of all workers. All must call it."""
        own = OBSERVED.pack(self.staleness, self.divergence, self.meetings)
        staleness, divergence, meetings = map(max, zip(*map(OBSERVED.unpack, exchange(own)), strict=True))
        return {"bound": self.bound, "staleness": staleness, "divergence": divergence, "meetings": meetings}
