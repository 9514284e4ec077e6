"""Times of a transport's verbs between two workers, as data; `transport/timing.py` measures them."""

from collections.abc import Sequence
from dataclasses import dataclass

from samestep.plan.machine import Link


@dataclass(frozen=True)
class Curve:
    """points: (bytes, median seconds), ascending. cpu: seconds of both workers per byte, at the largest size."""

    points: tuple[tuple[int, float], ...]
    cpu: float

    @property
    def link(self) -> Link:
        """The line a + n/b that fits the points best, by relative error."""
        return fitted(self.points)


@dataclass(frozen=True)
class LinkTimes:
    """Times of the verbs. exchange and fence: seconds until all workers have met; for a record of 64 bytes.

    send: from the call to the arrival as a tensor. move: two workers exchange bytes, which are then in shared memory
    and not yet read.
    """

    exchange: float
    fence: float
    send: Curve
    move: Curve


def fitted(points: Sequence[tuple[int, float]]) -> Link:
    """Least squares of (a + n s) / t - 1 over points (n bytes, t seconds); latency a >= 0, bandwidth 1/s.

    By relative error a small message counts as much as a large one. At least one n must be above 0.
    """
    x = [1 / seconds for _, seconds in points]
    y = [nbytes / seconds for nbytes, seconds in points]
    xx, yy, xy = (sum(p * q for p, q in zip(u, v, strict=True)) for u, v in ((x, x), (y, y), (x, y)))
    determinant = xx * yy - xy * xy
    if determinant > 0:
        latency = (sum(x) * yy - sum(y) * xy) / determinant
        slope = (sum(y) * xx - sum(x) * xy) / determinant
        if latency >= 0 and slope > 0:
            return Link(latency, 1 / slope)
    return Link(0.0, yy / sum(y))
