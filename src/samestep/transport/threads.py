"""Workers as threads of one process, one running at a time. Exact, deterministic, never fast.

Several fabrics that share a baton are several hosts, for tests: ThreadLinks join them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.errors import PeerLost
from samestep.trace.timesheet import Timesheet
from samestep.transport.baton import Baton
from samestep.transport.links import Links, Pending
from samestep.transport.strides import empty_from, header, payload
from samestep.transport.transport import Counted


class ThreadFabric:
    """The board on which the threads leave records and tensors for one another."""

    def __init__(self, size: int, baton: Baton | None = None) -> None:
        self.size = size
        self.baton = baton or Baton()
        self.records: dict[tuple[int, tuple[int, ...]], deque[bytes]] = {}
        self.tensors: dict[tuple[int, ...], deque[Tensor]] = {}  # by sender, receiver, and group of a move
        self.gone: set[int] = set()

    def memory(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def endpoint(self, rank: int) -> "ThreadTransport":
        """Also takes the baton: from here on the calling thread runs alone."""
        self.baton.take()
        return ThreadTransport(self, rank)


class ThreadTransport:
    def __init__(self, fabric: ThreadFabric, rank: int) -> None:
        self.rank, self.size = rank, fabric.size
        self.hosts: tuple[int, ...] = (0,) * fabric.size
        self.timesheet, self.counted = Timesheet(), Counted()
        self.links: Links | None = None
        self._fabric = fabric
        self._group = tuple(range(fabric.size))

    def exchange(self, record: bytes, ranks: Sequence[int] | None = None) -> list[bytes]:
        group = self._group if ranks is None else tuple(ranks)
        boxes = self._fabric.records
        for reader in group:
            boxes.setdefault((self.rank, (reader, *group)), deque()).append(record)
        found = []
        for writer in group:
            box = boxes.setdefault((writer, (self.rank, *group)), deque())
            self._wait(writer, lambda box=box: bool(box))  # type: ignore[misc]
            found.append(box.popleft())
        return found

    def fence(self) -> None:
        self.exchange(b"")

    def send(self, tensor: Tensor, peer: int) -> None:
        self._put((self.rank, peer), tensor)

    def receive(self, peer: int) -> Tensor:
        return self._take((peer, self.rank))

    def move(
        self, group: Sequence[int], outgoing: Sequence[tuple[int, Tensor]], sources: Sequence[int]
    ) -> list[Tensor]:
        """On boxes of the group's own: what is sent on the side does not come between."""
        for peer, tensor in outgoing:
            self._put((self.rank, peer, *group), tensor)
        return [self._take((peer, self.rank, *group)) for peer in sources]

    def close(self) -> None:
        self._fabric.gone.add(self.rank)
        self._fabric.baton.give()

    def _put(self, box: tuple[int, ...], tensor: Tensor) -> None:
        copy, filled = empty_from(header(tensor))
        filled.copy_(payload(tensor))
        self._fabric.tensors.setdefault(box, deque()).append(copy)

    def _take(self, box: tuple[int, ...]) -> Tensor:
        """box: sender, receiver, and the group for a move."""
        waiting = self._fabric.tensors.setdefault(box, deque())
        self._wait(box[0], lambda: bool(waiting))
        self.counted.moved += waiting[0].numel() * waiting[0].element_size()
        return waiting.popleft()

    def _wait(self, peer: int, ready: Callable[[], bool]) -> None:
        self._fabric.baton.wait_for(lambda: ready() or peer in self._fabric.gone)
        if not ready():
            raise PeerLost(self.rank, peer)


class ThreadLinks:
    """Links between threads: `board` is one for all of them."""

    def __init__(self, rank: int, board: dict[tuple[int, int, int], deque[Tensor]], gone: set[int], baton: Baton):
        self.rank = rank
        self._board, self._gone, self._baton = board, gone, baton

    def post(self, flat: Tensor, peer: int, tag: int) -> Pending:
        self._board.setdefault((self.rank, peer, tag), deque()).append(flat.detach().clone())
        return Done()

    def expect(self, flat: Tensor, peer: int, tag: int) -> Pending:
        return Arrival(self, flat, peer, tag)

    def give_way(self) -> None:
        pass

    def close(self) -> None:
        self._gone.add(self.rank)

    def fill(self, flat: Tensor, peer: int, tag: int) -> None:
        box = self._board.setdefault((peer, self.rank, tag), deque())
        self._baton.wait_for(lambda: bool(box) or peer in self._gone)
        if not box:
            raise PeerLost(self.rank, peer)
        found = box.popleft()
        flat.detach()[: len(found)].copy_(found)


class Done:
    def wait(self) -> None:
        pass


@dataclass
class Arrival:
    """Copied when it is waited for."""

    links: ThreadLinks
    flat: Tensor
    peer: int
    tag: int

    def wait(self) -> None:
        self.links.fill(self.flat, self.peer, self.tag)
