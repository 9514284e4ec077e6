"""Costs of a job's actions on a machine, as measured by short runs of the real executor.

Two tables: one measured by a worker alone, one by several that compute at once and share caches and memory
bandwidth. Between them costs are interpolated by the number of workers. All of them are seconds of busy time:
the simulator finds how long a worker waits for others.
"""

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Seconds of a forward and of a backward."""

    forward: float
    backward: float

    def scaled(self, factor: float) -> "Pair":
        return Pair(self.forward * factor, self.backward * factor)


@dataclass(frozen=True)
class Table:
    """Costs while `workers` workers of one host compute at once."""

    workers: int
    whole: Pair  # the uncut network, one shard
    units: tuple[Pair, ...]  # one shard through each unit, in a segment of its own
    regions: tuple[Pair, ...]  # a set of all shards through each region, on one worker with `own` slices
    own: tuple[int, ...]
    rests: tuple[Pair, ...]  # one shard through the unsliced calls of a region's units
    load: float  # of one shard's rows
    add: float  # per byte of gradient that is added to another shard's
    agree: float
    merge: float
    clip: float
    publish: float
    reduce: float  # per byte and summand that a worker reads for its pieces
    update: float  # per byte of parameters
    gap: float  # between two steps
    skew: float  # waiting in a step of equal shares, as a fraction of the computing
    spread: float  # relative spread of a step's time: half the distance of the quartiles, over the median

    @property
    def cell(self) -> Pair:
        """Cost of a segment beside its calls, so that all units in one segment take as long as `whole`.

        Negative where the units took less time by themselves.
        """
        cuts = len(self.units) - 1
        if cuts < 1:
            return Pair(0.0, 0.0)
        forward = sum(u.forward for u in self.units) - self.whole.forward
        backward = sum(u.backward for u in self.units) - self.whole.backward
        return Pair(forward / cuts, backward / cuts)


SCALARS = tuple(f.name for f in fields(Table) if f.name not in ("workers", "whole", "units", "regions", "own", "rests"))


@dataclass(frozen=True)
class Passing:
    """Seconds to hand a tensor to a worker of the same host: fixed, and per byte, on either side.

    far: to a worker of another host, whatever the size.
    """

    send: float
    send_byte: float
    receive: float
    receive_byte: float
    far_send: float
    far_receive: float


@dataclass(frozen=True)
class MeasuredCosts:
    """Measured costs of one job's actions with one set of numerics on one machine."""

    alone: Table
    together: Table
    passing: Passing

    def table(self, workers: int) -> Table:
        """The costs while `workers` workers of a host compute; for more than were measured, those of the most."""
        a, b = self.alone, self.together
        if workers <= a.workers or a.workers == b.workers:
            return a
        part = min(1.0, (workers - a.workers) / (b.workers - a.workers))

        def between(x: float, y: float) -> float:
            return x + part * (y - x)

        def pair(x: Pair, y: Pair) -> Pair:
            return Pair(between(x.forward, y.forward), between(x.backward, y.backward))

        scalars: dict[str, Any] = {name: between(getattr(a, name), getattr(b, name)) for name in SCALARS}
        return replace(
            b,
            workers=workers,
            whole=pair(a.whole, b.whole),
            units=tuple(map(pair, a.units, b.units)),
            rests=tuple(map(pair, a.rests, b.rests)),
            **scalars,
        )

    def slope(self, region: int) -> Pair:
        """Seconds of one slice of a region more or less, for the rows of all shards."""
        return self.alone.regions[region].scaled(1 / max(1, self.alone.own[region]))
