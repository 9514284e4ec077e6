"""Statistics of rounds: bootstrap intervals of medians and of their ratios, and the noise within which plans tie.

Efron 1979: the samples stand for their distribution; draw from them again, with replacement, and observe how the
statistic varies. Two contenders of one comparison are drawn round by round together, since disturbances of the
machine in a round affect both.
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
    """The median of a contender's seconds per round, with its interval."""
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
    """Distance from 1 of a contender's ratio to itself; a contender within it of the best one ties.

    again: the ratio of the reference's second copy to the first (A/A).
    """
    return max(again.high, 1 / again.low, 1.0) - 1.0


def regret_of(pick: float, best: float) -> float:
    """Cost of a choice, as a share of the best one's time; 0 for the best."""
    return pick / best - 1.0
