"""One worker of several processes of one host: records over Unix sockets, tensors through shared memory.

Each pair of workers has one pair of sockets for packets; a dead peer is an end-of-file at once, not a timeout. Waiting
sleeps, so more workers than cores is fine. The memory, and the sockets: shared_fabric.py. Tensors: shared_tensors.py.
"""

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from samestep.errors import PeerLost
from samestep.trace.timesheet import Timesheet
from samestep.trace.whereabouts import check_same_place
from samestep.transport.links import Links
from samestep.transport.shared_tensors import Boxes, SharedTensors
from samestep.transport.transport import Counted

RECORD = b"R"  # first byte of a packet; tensors have others
RECORD_HEAD = struct.Struct("<IB")  # bytes of the record, and of the tag that names the sender's call
TAG = 255  # bytes of the tag at most
PACKET = 32 * 1024  # bytes of a record per packet; two unread ones fit any socket buffer


class Packets:
    """One worker's sockets to the others of its host. timeout: seconds without a sign of life; None: no limit."""

    def __init__(self, rank: int, sockets: Mapping[int, socket.socket], timeout: float | None) -> None:
        self.rank, self.timesheet = rank, Timesheet()
        self.ranks: Sequence[int] = range(len(sockets) + 1)  # this host's workers by their numbers in the whole run
        self.on_tensor: Mapping[bytes, Callable[[int, bytes], None]] = {}  # by kind: takes a packet about a tensor
        self._sockets, self._timeout = sockets, timeout
        self._unread: dict[tuple[int, bytes], deque[bytes]] = {}

    def send(self, peer: int, packet: bytes) -> None:
        try:
            self._sockets[peer].send(packet)
        except OSError:
            raise PeerLost(self.rank, peer) from None

    def receive(self, peer: int, kind: bytes) -> bytes:
        """The body of the next packet of `kind` from `peer`; other packets that come first are handled or kept."""
        kept = self._unread.setdefault((peer, kind), deque())
        if not kept:
            began = time.perf_counter()
            self.timesheet.whereabouts.waits(self.ranks[peer], b"record" if kind == RECORD else b"move")
            while not kept:
                self._next(peer)
            self._waited(time.perf_counter() - began)
        return kept.popleft()

    def wait(self, peer: int, ready: Callable[[], bool]) -> None:
        """Wait for `peer`, and handle meanwhile the packets of all others."""
        if ready():
            return
        began = time.perf_counter()
        self.timesheet.whereabouts.waits(self.ranks[peer], b"tensor")
        listening = select.poll()
        peer_of = {end.fileno(): other for other, end in self._sockets.items()}
        for fd in peer_of:
            listening.register(fd, select.POLLIN)
        while not ready():
            for fd, _ in self._polled(listening, peer):
                try:
                    self._next(peer_of[fd])
                except PeerLost:
                    if peer_of[fd] == peer:
                        raise
                    listening.unregister(fd)  # it may have ended in order
        self._waited(time.perf_counter() - began)

    def close(self) -> None:
        for end in self._sockets.values():
            end.close()

    def _waited(self, seconds: float) -> None:
        self.timesheet.waited(seconds)
        self.timesheet.whereabouts.goes_on(seconds)

    def _polled(self, listening: select.poll, peer: int) -> list[tuple[int, int]]:
        """The sockets that have a packet. Raises PeerLost when none has one within the timeout."""
        found = listening.poll(None if self._timeout is None else self._timeout * 1e3)
        if not found:
            raise PeerLost(self.rank, peer, f"it has not answered for {self._timeout:g} s")
        return found

    def _next(self, peer: int) -> None:
        """Take one packet from a peer; hand on what is about a tensor, and keep the rest."""
        try:
            if self._timeout is not None:
                single = select.poll()
                single.register(self._sockets[peer].fileno(), select.POLLIN)
                self._polled(single, peer)
            packet = self._sockets[peer].recv(PACKET + TAG + 64)
        except OSError:
            packet = b""
        if not packet:
            raise PeerLost(self.rank, peer)
        kind, body = packet[:1], packet[1:]
        if kind in self.on_tensor:
            self.on_tensor[kind](peer, body)
        else:
            self._unread.setdefault((peer, kind), deque()).append(body)


class SharedTransport:
    """One worker's transport to the others of its host."""

    def __init__(self, packets: Packets, boxes: Boxes) -> None:
        self.rank, self.size = packets.rank, len(packets.ranks)
        self.hosts: tuple[int, ...] = (0,) * self.size
        self.timesheet, self.counted = packets.timesheet, Counted()
        self.links: Links | None = None
        self.when_closed: list[Callable[[], None]] = []
        self._packets = packets
        self._tensors = SharedTensors(packets, boxes, self.counted)

    def number_in_run(self, ranks: Sequence[int]) -> None:
        """ranks: the numbers that this host's workers have in the whole run, for messages about them."""
        self._packets.ranks = ranks

    def exchange(self, record: bytes, ranks: Sequence[int] | None = None) -> list[bytes]:
        """Records longer than a packet go in rounds; the first packet says how long the record is.

        Raises Disagreement when another worker meets this one in another call or action.
        """
        group = range(self.size) if ranks is None else ranks
        peers = [peer for peer in group if peer != self.rank]
        parts: dict[int, list[bytes]] = {peer: [] for peer in peers}
        packets, own = self._packets, self.timesheet.whereabouts.tag
        head = RECORD_HEAD.pack(len(record), len(own)) + own
        mine = [record[at : at + PACKET] for at in range(0, len(record), PACKET)] or [b""]
        rounds, done = len(mine), 0
        while done < rounds:
            part = mine[done] if done < len(mine) else b""
            for peer in peers:
                packets.send(peer, RECORD + head + part)
            for peer in peers:
                packet = packets.receive(peer, RECORD)
                length, tagged = RECORD_HEAD.unpack_from(packet)
                other = packet[RECORD_HEAD.size :][:tagged]
                check_same_place(packets.ranks[self.rank], own, packets.ranks[peer], other)
                rounds = max(rounds, -(-length // PACKET))
                parts[peer].append(packet[RECORD_HEAD.size + tagged :])
            done += 1
        return [record if peer == self.rank else b"".join(parts[peer]) for peer in group]

    def fence(self) -> None:
        self.exchange(b"")

    def send(self, tensor: Tensor, peer: int) -> None:
        self._tensors.send(tensor, peer)

    def receive(self, peer: int) -> Tensor:
        return self._tensors.receive(peer)

    def move(
        self, group: Sequence[int], outgoing: Sequence[tuple[int, Tensor]], sources: Sequence[int]
    ) -> list[Tensor]:
        return self._tensors.move(group, outgoing, sources)

    def close(self) -> None:
        self.timesheet.whereabouts.leave()
        self._packets.close()
        while self.when_closed:
            self.when_closed.pop()()
