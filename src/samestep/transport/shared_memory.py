"""Workers as processes of one host: shared memory for payload, Unix sockets as doorbell.

Memory is an anonymous shared mapping made before the fork: it has no name to leave behind and does
not count against the size of /dev/shm. Each pair of workers has one sequenced-packet socket pair; a
dead peer is an end-of-file at once, not a timeout. Waiting sleeps, so more workers than cores is fine.

    send      through a mailbox of the pair, slot by slot; who waits also empties its mailboxes,
              so two workers that send to one another do not block
    move      through the sender's outbox for the group, written once whoever reads it:
              half 0, half 1, half 0, ...; when a worker comes to its third move of a group, all
              others have begun their second, so nobody reads the first any more
"""

import mmap
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from samestep.errors import Disagreement, PeerLost
from samestep.trace.timesheet import Timesheet
from samestep.transport.links import Links
from samestep.transport.rendezvous import Rendezvous
from samestep.transport.strides import (
    empty_from,
    header,
    payload,
    view_from,
)
from samestep.transport.transport import Counted

RECORD, HEADER, PIECE, TAKEN, MOVE = b"R", b"H", b"P", b"T", b"M"  # first byte of a packet
RECORD_HEAD = struct.Struct("<IB")  # bytes of the record, and of what tells where its sender is
TAG = 255  # bytes of that at most
PACKET = 32 * 1024  # bytes of a record per packet; two unread ones fit any socket buffer
SLOT = 512 * 1024  # bytes of a mailbox slot
SLOTS = 2  # per direction of a pair
ALIGN = 64
PLACE = struct.Struct("<qI")  # of a moved tensor: its byte in the outbox (-1: by mail), bytes of its header


class SharedFabric:
    """Made in the leader before it forks; every worker then takes its endpoint.

    groups: bytes that a worker gives away in one `move` of that group at most; more goes by mail.
    slots: of 512 KiB, which a worker can send to another before it waits.
    meeting: of workers that were not forked from one process; each then makes its own fabric, alike.
    """

    def __init__(
        self,
        size: int,
        groups: Mapping[tuple[int, ...], int] | None = None,
        slots: int = SLOTS,
        meeting: Rendezvous | None = None,
        device: torch.device | None = None,
    ) -> None:
        """device: of the memory of a worker that shares it with nobody; what is shared is the CPU's."""
        assert size == 1 or device is None, "workers that share memory are on the CPU"
        self.size = size
        self.slots = slots
        self._meeting, self._device = meeting, device
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        self._mailboxes: dict[tuple[int, int], Tensor] = {}
        self._outboxes = {
            (group, rank): self.memory(2 * nbytes)
            for group, nbytes in (groups or {}).items()
            for rank in group
            if len(group) > 1
        }
        if meeting is not None:
            self._sockets = {(meeting.rank, peer): end for peer, end in meeting.sockets().items()}
        for a in range(size):
            for b in range(a):
                self._mailboxes[a, b], self._mailboxes[b, a] = (self.memory(slots * SLOT) for _ in range(2))
                if meeting is not None:
                    continue
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._sockets[a, b], self._sockets[b, a] = pair

    def memory(self, nbytes: int) -> Tensor:
        if self.size == 1:
            return torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
        if self._meeting is not None:
            return self._meeting.memory(nbytes)
        return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]

    def endpoint(self, rank: int, timeout: float | None = None) -> "SharedTransport":
        """Closes the ends of the others: else their death would go unseen.

        timeout: seconds after which a worker that does not answer counts as lost; None: never.
        """
        if self._meeting is not None:
            self._meeting.close()
        mine = {b: end for (a, b), end in self._sockets.items() if a == rank}
        for (a, _), end in self._sockets.items():
            if a != rank:
                end.close()
        return SharedTransport(rank, self.size, mine, self._mailboxes, self._outboxes, self.slots, timeout)

    def close(self) -> None:
        """For the leader, which takes no endpoint."""
        for end in self._sockets.values():
            end.close()


class SharedTransport:
    def __init__(
        self,
        rank: int,
        size: int,
        sockets: dict[int, socket.socket],
        mailboxes: dict[tuple[int, int], Tensor],
        outboxes: dict[tuple[tuple[int, ...], int], Tensor],
        slots: int,
        timeout: float | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self._timeout = timeout
        self.hosts: tuple[int, ...] = (0,) * size
        self.ranks: Sequence[int] = range(size)  # what the workers of this host are called in the whole run
        self.timesheet, self.counted = Timesheet(), Counted()
        self.links: Links | None = None
        self.ends_with_it: list[Callable[[], None]] = []
        self._sockets = sockets
        self._mailboxes, self._slots = mailboxes, slots
        self._outboxes = outboxes
        self._moves: dict[tuple[int, ...], int] = {}
        self._unread: dict[tuple[int, bytes], deque[bytes]] = {}
        self._coming: dict[int, tuple[Tensor, Tensor]] = {}  # a tensor that arrives, and its bytes still to come
        self._inbox: dict[int, deque[Tensor]] = {peer: deque() for peer in sockets}
        self._sent, self._taken, self._got = ([0] * size for _ in range(3))  # mailbox slots, per peer

    def exchange(self, record: bytes, ranks: Sequence[int] | None = None) -> list[bytes]:
        """Records longer than a packet go in rounds; the first packet tells how many.

        Raises Disagreement when another worker meets this one in another call or action.
        """
        group = range(self.size) if ranks is None else ranks
        peers = [peer for peer in group if peer != self.rank]
        parts: dict[int, list[bytes]] = {peer: [] for peer in peers}
        own = self.timesheet.whereabouts.tag
        head = RECORD_HEAD.pack(len(record), len(own)) + own
        mine = [record[at : at + PACKET] for at in range(0, len(record), PACKET)] or [b""]
        rounds, done = len(mine), 0
        while done < rounds:
            part = mine[done] if done < len(mine) else b""
            for peer in peers:
                self._send(peer, RECORD + head + part)
            for peer in peers:
                packet = self._receive(peer, RECORD)
                length, tagged = RECORD_HEAD.unpack_from(packet)
                check_same_place(self.ranks[self.rank], own, self.ranks[peer], packet[RECORD_HEAD.size :][:tagged])
                rounds = max(rounds, -(-length // PACKET))
                parts[peer].append(packet[RECORD_HEAD.size + tagged :])
            done += 1
        return [record if peer == self.rank else b"".join(parts[peer]) for peer in group]

    def fence(self) -> None:
        self.exchange(b"")

    def send(self, tensor: Tensor, peer: int) -> None:
        """What fits into free slots is on its way without the receiver's help; more waits for it."""
        self._send(peer, HEADER + header(tensor))
        box, flat = self._mailboxes[self.rank, peer], payload(tensor)
        for at in range(0, len(flat), SLOT):
            self._wait(peer, lambda: self._sent[peer] - self._taken[peer] < self._slots)
            piece = flat[at : at + SLOT]
            slot = self._sent[peer] % self._slots * SLOT
            box[slot : slot + len(piece)].copy_(piece)
            self._sent[peer] += 1
            self._send(peer, PIECE)

    def receive(self, peer: int) -> Tensor:
        box = self._inbox[peer]
        self._wait(peer, lambda: bool(box))
        self.counted.moved += box[0].numel() * box[0].element_size()
        return box.popleft()

    def move(
        self, group: Sequence[int], outgoing: Sequence[tuple[int, Tensor]], sources: Sequence[int]
    ) -> list[Tensor]:
        group = tuple(group)
        number = self._moves[group] = self._moves.get(group, -1) + 1
        mail: list[tuple[int, Tensor]] = []
        packets = {peer: b"" for peer in group if peer != self.rank}
        if packets:
            outbox = self._half(group, self.rank, number)
            at, placed = 0, dict[int, int]()
            for peer, tensor in outgoing:
                if id(tensor) not in placed:
                    placed[id(tensor)], at = _put(outbox, at, tensor)
                if placed[id(tensor)] < 0:
                    mail.append((peer, tensor))
                described = header(tensor)
                packets[peer] += PLACE.pack(placed[id(tensor)], len(described)) + described
        for peer, packet in packets.items():
            self._send(peer, MOVE + packet)
        for peer, tensor in mail:
            self.send(tensor, peer)
        told = {peer: self._receive(peer, MOVE) for peer in packets}
        found = []
        for peer in sources:
            place, length = PLACE.unpack_from(told[peer])
            described = told[peer][PLACE.size : PLACE.size + length]
            told[peer] = told[peer][PLACE.size + length :]
            if place < 0:
                found.append(self.receive(peer))
                continue
            found.append(view_from(described, self._half(group, peer, number)[place:]))
            self.counted.moved += found[-1].numel() * found[-1].element_size()
        return found

    def close(self) -> None:
        self.timesheet.whereabouts.leave()
        for end in self._sockets.values():
            end.close()
        while self.ends_with_it:
            self.ends_with_it.pop()()

    def _half(self, group: tuple[int, ...], rank: int, number: int) -> Tensor:
        box = self._outboxes.get((group, rank), torch.empty(0, dtype=torch.uint8))
        return box[number % 2 * (len(box) // 2) :][: len(box) // 2]

    def _send(self, peer: int, packet: bytes) -> None:
        try:
            self._sockets[peer].send(packet)
        except OSError:
            raise PeerLost(self.rank, peer) from None

    def _receive(self, peer: int, kind: bytes) -> bytes:
        """The body of the next packet of `kind` from `peer`; what else comes before it is dealt with."""
        kept = self._unread.setdefault((peer, kind), deque())
        if not kept:
            began = time.perf_counter()
            self.timesheet.whereabouts.waits(self.ranks[peer], b"record" if kind == RECORD else b"move")
            while not kept:
                self._next(peer)
            self._waited(time.perf_counter() - began)
        return kept.popleft()

    def _wait(self, peer: int, ready: Callable[[], bool]) -> None:
        """Wait for `peer`, and deal meanwhile with what the others send."""
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
                    listening.unregister(fd)  # it may just have come to its end
        self._waited(time.perf_counter() - began)

    def _waited(self, seconds: float) -> None:
        self.timesheet.waited(seconds)
        self.timesheet.whereabouts.goes_on(seconds)

    def _polled(self, listening: select.poll, peer: int) -> list[tuple[int, int]]:
        """Who has something to say. Raises PeerLost when nobody has within the timeout."""
        found = listening.poll(None if self._timeout is None else self._timeout * 1e3)
        if not found:
            raise PeerLost(self.rank, peer, f"it has not answered for {self._timeout:g} s")
        return found

    def _next(self, peer: int) -> None:
        """Take one packet from a peer and do what it asks for."""
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
        if kind == HEADER:
            tensor, flat = empty_from(body)
            self._coming[peer] = tensor, flat
            self._arrive(peer)
        elif kind == PIECE:
            slot = self._got[peer] % self._slots * SLOT
            tensor, flat = self._coming[peer]
            piece = flat[:SLOT]
            piece.copy_(self._mailboxes[peer, self.rank][slot : slot + len(piece)])
            self._got[peer] += 1
            self._coming[peer] = tensor, flat[SLOT:]
            self._send(peer, TAKEN)
            self._arrive(peer)
        elif kind == TAKEN:
            self._taken[peer] += 1
        else:
            self._unread.setdefault((peer, kind), deque()).append(body)

    def _arrive(self, peer: int) -> None:
        tensor, rest = self._coming[peer]
        if not len(rest):
            self._inbox[peer].append(tensor)
            del self._coming[peer]


def check_same_place(rank: int, own: bytes, peer: int, other: bytes) -> None:
    """Raises Disagreement where two workers meet and each is somewhere else (`Whereabouts.tag`)."""
    if own != other:
        mine, theirs = (tag.decode(errors="replace") or "no call of its trainer" for tag in (own, other))
        raise Disagreement(
            f"worker {rank} is in {mine} and meets worker {peer}, which is in {theirs}: every worker must make the "
            "same calls in the same order and as often; look for a call under `if rank == ...`, for calls in another "
            "order, and for a loop that ends earlier on one worker"
        )


def _put(outbox: Tensor, at: int, tensor: Tensor) -> tuple[int, int]:
    """Write a tensor's bytes at `at`; returns where they are (-1: they do not fit) and where the next go."""
    flat = payload(tensor)
    if at + len(flat) > len(outbox):
        return -1, at
    outbox[at : at + len(flat)].copy_(flat)
    return at, -(-(at + len(flat)) // ALIGN) * ALIGN
