"""Seconds that an exchange between n workers takes on a described link.

    a  latency of a message, seconds         S  bytes of the whole tensor
    b  bandwidth of a worker, bytes/s        n  workers

    passing                 a + S/b
    reduce-scatter          (n-1) a + (n-1)/n S/b       ring; all-gather is the same backwards
    all-reduce, ring        2 (n-1) a + 2 (n-1)/n S/b
    all-reduce, direct      2 a + 2 (n-1)/n S/b         everybody to everybody: a ring's bytes in two rounds
    broadcast               the less of a tree, ceil(log2 n) (a + S/b), and of scattering and gathering

Every curve is monotone in S and in n, continuous in S, and zero for one worker. A ring is as fast as its slowest
link. Thakur, Rabenseifner, Gropp 2005, "Optimization of collective communication operations in MPICH".
"""

import math
from dataclasses import dataclass

from samestep.errors import PlanRefused


@dataclass(frozen=True)
class Link:
    """How a worker reaches the others: seconds per message, and bytes per second each way.

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


def direct_all_reduce(link: Link, workers: int, nbytes: float) -> float:
    """Seconds when everybody sends to everybody at once: the ring's bytes, two rounds of messages."""
    rounds = 2 if workers > 1 else 0
    return rounds * link.latency + 2 * _rest(workers) * nbytes / link.bandwidth


def broadcast(link: Link, workers: int, nbytes: float) -> float:
    """Seconds until n workers have what one of them had: by a tree, or in parts when it is large."""
    rounds = (workers - 1).bit_length()
    tree = rounds * passing(link, nbytes)
    scatter = rounds * link.latency + _rest(workers) * nbytes / link.bandwidth
    return min(tree, scatter + all_gather(link, workers, nbytes))


def two_level_all_reduce(fast: Link, slow: Link, per_group: int, groups: int, nbytes: float) -> float:
    """Seconds of an all-reduce of `groups` groups of `per_group` workers each.

    `fast` is a worker's link within its group; `slow` is what a group shares to reach the others. A part per member
    is summed within each group, then across, then gathered: the slow link sees a ring's bytes once per group.
    """
    within = reduce_scatter(fast, per_group, nbytes) + all_gather(fast, per_group, nbytes)
    return within + all_reduce(slow, groups, nbytes)


def _rest(workers: int) -> float:
    """The part of a tensor that a worker must hear of from others: (n-1)/n."""
    return (workers - 1) / workers
