"""Seconds of an exchange between n workers on a described link.

    a  latency of a message, seconds         S  bytes of the whole tensor
    b  bandwidth of a worker, bytes/s        n  workers

    passing                 a + S/b
    reduce-scatter          (n-1) a + (n-1)/n S/b       ring; all-gather is the same backwards
    all-reduce, ring        2 (n-1) a + 2 (n-1)/n S/b

Every curve is monotone in S and in n, continuous in S, and zero for one worker. A ring is as fast as its slowest
link. Thakur, Rabenseifner, Gropp 2005, "Optimization of collective communication operations in MPICH".
"""

import math
from dataclasses import dataclass

from samestep.errors import PlanRefused


@dataclass(frozen=True)
class Link:
    """Link from a worker to the others: seconds per message, and bytes per second each way.

    Raises PlanRefused when the latency is negative or the bandwidth is not above zero.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (0 <= self.latency < math.inf and self.bandwidth > 0):
            raise PlanRefused(
                f"a link with a latency of {self.latency} s and a bandwidth of {self.bandwidth} bytes/s: "
                "give a latency of 0 or more and a bandwidth above 0"
            )


def passing(link: Link, nbytes: float) -> float:
    """Seconds for one message of `nbytes` from one worker to another."""
    return link.latency + nbytes / link.bandwidth


def reduce_scatter(link: Link, workers: int, nbytes: float) -> float:
    """Seconds until each of n workers has the sum of its n-th part of a tensor of `nbytes`."""
    return (workers - 1) * link.latency + _rest(workers) * nbytes / link.bandwidth


def all_gather(link: Link, workers: int, nbytes: float) -> float:
    """Seconds until each of n workers, which have an n-th each, has all `nbytes`."""
    return reduce_scatter(link, workers, nbytes)


def all_reduce(link: Link, workers: int, nbytes: float) -> float:
    """Seconds of a ring: a reduce-scatter, then an all-gather."""
    return reduce_scatter(link, workers, nbytes) + all_gather(link, workers, nbytes)


def _rest(workers: int) -> float:
    """Part of a tensor that a worker must receive from others: (n-1)/n."""
    return (workers - 1) / workers
