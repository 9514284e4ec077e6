"""Fit of a few parameters of a model to a few measured times: least squares over the logarithms, both of times and of
parameters, so that an error of 5 % counts the same in a short and in a long step, and no parameter turns negative.

Levenberg 1944, Marquardt 1963: a Gauss-Newton step, shortened until it helps. A parameter that the measurements do
not determine stays at its start: `pull` holds every parameter there, like one more measurement of weight pull^2.
So there may be more parameters than measurements.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Case = TypeVar("Case")
Vector = NDArray[np.float64]

STEP = 1e-5  # step of a logarithm, for the derivative
STEPS = 60
ENOUGH = 1e-8  # relative gain of the sum of squares below which the search ends


def fit(
    predict: Callable[[Vector, Case], float],
    start: Sequence[float],
    cases: Sequence[Case],
    seconds: Sequence[float],
    pull: float | Sequence[float] = 0.05,
) -> Vector:
    """The parameters, near `start` (all above 0), with which `predict(parameters, case)` fits `seconds` best.

    pull: for all parameters, or of each: the expected error of a time over the expected distance from the start.
    """
    origin = np.log(np.asarray(start, dtype=np.float64))
    measured = np.log(np.asarray(seconds, dtype=np.float64))
    pulls = np.broadcast_to(np.asarray(pull, dtype=np.float64), origin.shape)

    def residuals(at: Vector) -> Vector:
        predicted = np.log([predict(np.exp(at), case) for case in cases])
        return np.concatenate([predicted - measured, pulls * (at - origin)])

    at: Vector = np.exp(_least(residuals, origin))
    return at


def _least(residuals: Callable[[Vector], Vector], at: Vector) -> Vector:
    """Local minimum of the sum of squares, downhill from `at`."""
    found, damping = residuals(at), 1e-2
    for _ in range(STEPS):
        slope = _slope(residuals, at, found)
        normal = slope.T @ slope
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slope.T @ found)
        trial = residuals(at + step)
        gain = found @ found - trial @ trial
        if gain > 0:
            at, found, damping = at + step, trial, damping / 3
        else:
            damping *= 4
        if 0 < gain < ENOUGH or damping > 1e8:
            break
    return at


def _slope(residuals: Callable[[Vector], Vector], at: Vector, found: Vector) -> Vector:
    columns = [(residuals(at + STEP * unit) - found) / STEP for unit in np.eye(len(at))]
    return np.stack(columns, axis=1)


def spread_out(points: Sequence[Sequence[float]], turns: Sequence[Sequence[int]]) -> list[int]:
    """One number of each turn, of the point that is farthest from the points chosen before; first the middle one.

    A calibration that covers the range. Coordinates are scaled to the range that they have; ties go to the lower
    number, so it is deterministic (Gonzalez 1985, farthest-first traversal).
    """
    table = np.asarray(points, dtype=np.float64)
    width = np.ptp(table, axis=0)
    table = table / np.where(width > 0, width, 1.0)
    distance = -np.linalg.norm(table - np.median(table, axis=0), axis=1)
    chosen: list[int] = []
    for turn in turns:
        chosen.append(max(turn, key=lambda i: (distance[i], -i)))
        away = np.linalg.norm(table - table[chosen[-1]], axis=1)
        distance = away if len(chosen) == 1 else np.minimum(distance, away)
    return chosen
