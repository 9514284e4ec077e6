"""How sure a prediction is: from what was found when predictions were held against runs (benchmarks/regret).

The error of a prediction has three sources: the machine's own unrest, which the profile has seen; what the model
leaves out, which differs by kind of plan; and drift between profile and run. The first is measured, the other two
are one number per kind, fitted to the 90 % of held-out errors and written here with its source.
"""

from collections.abc import Mapping

MODEL: Mapping[str, float] = {
    "one process": 0.08,
    "data": 0.10,
    "uneven": 0.12,
    "hybrid": 0.12,
    "slices": 0.12,
    "pipeline": 0.14,
    "mixed": 0.16,
}
"""Half the width of a nominal 90 % interval, relative, by kind of plan, on a machine without unrest."""


def interval(seconds: float, kind: str, spread: float) -> tuple[float, float]:
    """Low and high. spread: half the distance of the quartiles of a step's time over the median, as profiled."""
    half = (MODEL[kind] ** 2 + (1.5 * spread) ** 2) ** 0.5
    return seconds * (1 - half), seconds * (1 + half)
