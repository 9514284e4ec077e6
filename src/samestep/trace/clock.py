"""The clocks of several hosts, brought to one. Monotonic clocks of hosts differ by anything: each began at its boot.

In a round every worker notes its clock, exchanges a record with all others, and notes its clock again.
Nobody has all records before all have begun: of workers a and b, with times before and after of each,

    a0 |--------------->| a1     a's clock
             \\ /
             / \\                 theta = b's clock - a's clock
       b0 |--------------->| b1  b's clock

    b came out after a went in:   b1 - theta >= a0     theta <= b1 - a0
    a came out after b went in:   a1 >= b0 - theta     theta >= b0 - a1

Each round bounds theta from both sides, and the bounds of all rounds hold together, those of all pairs of workers of
the two hosts too. The estimate is the middle between the largest lower bound and the least upper one; **its error is
at most half their distance**, which is half the shortest round trip or less (as in NTP, Mills 1991, whose sample with
the least delay is one of these rounds). Clocks are taken to run equally fast: 1 ppm more or less is 1 us per second of
the trace.
"""

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ROUNDS = 32

Stamps = Sequence[tuple[float, float]]  # per round: a worker's clock before and after, seconds
STAMP = struct.Struct("<dd")


@dataclass(frozen=True)
class Offset:
    """A host's clock minus that of host 0, in seconds; `error` is the most by which that is wrong."""

    seconds: float
    error: float


def stamped(
    exchange: Callable[[bytes], Sequence[bytes]], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> list[Stamps]:
    """Every worker's stamps, in the order of ranks. exchange: everybody's record to everybody; all must call this."""
    exchange(b"")  # begin together
    own = []
    for _ in range(rounds):
        before = clock()
        exchange(b"")
        own.append((before, clock()))
    records = exchange(b"".join(STAMP.pack(*stamp) for stamp in own))
    return [list(STAMP.iter_unpack(record)) for record in records]


def offsets(stamps: Sequence[Stamps], hosts: Sequence[int]) -> list[Offset]:
    """Per host, from the stamps of all workers. Workers of one host have one clock."""
    first = [own for own, host in zip(stamps, hosts, strict=True) if host == 0]
    found = [Offset(0.0, 0.0)]
    for host in range(1, max(hosts) + 1):
        there = [own for own, where in zip(stamps, hosts, strict=True) if where == host]
        bounds = [bounds_of(a, b) for a in first for b in there]
        low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
        found.append(Offset((low + high) / 2, abs(high - low) / 2))
    return found


def bounds_of(a: Stamps, b: Stamps) -> tuple[float, float]:
    """The largest lower and the least upper bound of b's clock minus a's."""
    low, high = -math.inf, math.inf
    for (a0, a1), (b0, b1) in zip(a, b, strict=True):
        low, high = max(low, b0 - a1), min(high, b1 - a0)
    return low, high
