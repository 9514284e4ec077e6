"""Confidence intervals of predictions, fitted to the errors of predictions against runs (benchmarks/regret).

The error of a prediction has three sources: the machine's noise, which the profile measures; the effects that the
model leaves out, which differ by kind of plan; and drift between profile and run. The first is measured, the other two
are one number per kind, fitted so that nine of ten runs are inside (benchmarks/regret/calibrate.py, 2026-11-27, 154
predictions on a shared machine, whose drift is most of it).
"""

from collections.abc import Mapping

MODEL: Mapping[str, float] = {
    "one process": 0.09,
    "data": 0.24,
    "uneven": 0.15,
    "hybrid": 0.27,
    "slices": 0.27,
    "pipeline": 0.33,
    "mixed": 0.33,
}
"""Half the width of a nominal 90 % interval, relative, by kind of plan, on a machine without noise."""


def interval(seconds: float, kind: str, spread: float) -> tuple[float, float]:
    """Low and high end. spread: half the distance of the quartiles of a step's time over the median, as profiled."""
    half = (MODEL[kind] ** 2 + (1.5 * spread) ** 2) ** 0.5
    return seconds * (1 - half), seconds * (1 + half)
