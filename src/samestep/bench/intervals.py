"""What medians of rounds say: bootstrap intervals of medians and of ratios, and what is a tie.

Efron 1979: the samples stand for what they were drawn from; draw from them again, with replacement, and
look at how the statistic varies. Two contenders of one comparison are drawn round by round together, since what
the machine did in a round hit both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
LEVEL = 0.9


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval (nominal 90 %)."""

    value: float
    low: float
    high: float


def draws_of(rounds: int, seed: int = 0) -> NDArray[np.int64]:
    """Rounds drawn with replacement. (DRAWS, rounds); the same for the same number of rounds."""
    return np.random.default_rng(seed).integers(0, rounds, (DRAWS, rounds))


def median_of(samples: Sequence[float]) -> Interval:
    """Of one contender: seconds per round in, the median's interval out."""
    values = np.asarray(samples, dtype=np.float64)
    return _spread(np.median(values), np.median(values[draws_of(len(values))], axis=1))


def ratio_of(samples: Sequence[float], others: Sequence[float]) -> Interval:
    """The median of `samples` over that of `others`, drawn round by round together. Both have the same rounds."""
    a, b = np.asarray(samples, dtype=np.float64), np.asarray(others, dtype=np.float64)
    drawn = draws_of(len(a))
    return _spread(np.median(a) / np.median(b), np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1))


def _spread(value: np.floating, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def noise_of(again: Interval) -> float:
    """How far from 1 the ratio of a contender to itself may be; what is within it of the best is a tie.

    again: the ratio of the reference's second copy to the first (A/A).
    """
    return max(again.high, 1 / again.low, 1.0) - 1.0


def regret_of(pick: float, best: float) -> float:
    """What the choice costs: a share of the best one's time, 0 for the best."""
    return pick / best - 1.0
