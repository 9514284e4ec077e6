"""A transport moves the bytes: the narrow interface between workers.

Five verbs and one kind of memory. A *fabric* is made once per run, before the workers work; it gives
out memory that every worker of a host sees, and one *transport* per worker:

    exchange   everybody's small record to everybody; also a barrier
    fence      after it, what any worker of the host wrote to fabric memory before it can be read
    send       one tensor to one worker, bits and strides kept
    receive    its counterpart
    move       tensors from any to any of a group that meets, as sliced layers need

Workers of other hosts share no memory. What of it they need goes over *links*, raw bytes from worker
to worker that nobody has to wait for (`links.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from samestep.trace.timesheet import Timesheet
from samestep.transport.links import Links


@dataclass
class Counted:
    """Bytes that one worker got from others."""

    moved: int = 0  # of tensors that other workers computed and this one read
    wired: int = 0  # that came from other hosts, all in all
    framed: int = 0  # of these, headers and records


class Transport(Protocol):
    """One worker's end. Every verb raises PeerLost when another worker is gone."""

    rank: int
    size: int
    hosts: tuple[int, ...]  # the host of every worker, numbered from 0
    timesheet: Timesheet
    counted: Counted
    links: Links | None  # None: all workers are on this host

    def exchange(self, record: bytes, ranks: Sequence[int] | None = None) -> list[bytes]:
        """Every worker's record, in the order of `ranks` (default: all). All of `ranks` must call it."""
        ...

    def fence(self) -> None:
        """Make writes to fabric memory visible on this host. All its workers must call it."""
        ...

    def send(self, tensor: Tensor, peer: int) -> None:
        """Send a tensor; returns at once for small ones, else when `peer` takes it."""
        ...

    def receive(self, peer: int) -> Tensor:
        """The next tensor that `peer` sent to this worker, with the strides it had there."""
        ...

    def move(
        self, group: Sequence[int], outgoing: Sequence[tuple[int, Tensor]], sources: Sequence[int]
    ) -> list[Tensor]:
        """Give tensors to others of `group` and take one from each of `sources`, several times if named so.

        All of `group` must call it. Take what it returns as read-only, and until the next call only.
        """
        ...

    def close(self) -> None:
        """Let go; peers that still wait for this worker raise PeerLost."""
        ...


class Fabric(Protocol):
    """Connects the workers of one run on one host."""

    size: int

    def memory(self, nbytes: int) -> Tensor:
        """A uint8 tensor of zeros that every worker of the host sees. Call before the workers work."""
        ...

    def endpoint(self, rank: int) -> Transport:
        """Worker `rank`'s transport. Call it once, in that worker."""
        ...
