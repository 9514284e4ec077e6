"""Workers as processes of one host: shared memory for payload, Unix sockets as doorbell.

Memory is an anonymous shared mapping made before the fork: it has no name to leave behind and does
not count against the size of /dev/shm. Each pair of workers has one sequenced-packet socket pair; a
dead peer is an end-of-file at once, not a timeout. Waiting sleeps, so more workers than cores is fine.
"""

import mmap
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from samestep.errors import PeerLost
from samestep.trace.timesheet import Timesheet
from samestep.transport.strides import empty_from, header, payload

RECORD, HEADER, PIECE, TAKEN = b"R", b"H", b"P", b"T"  # first byte of a packet
PACKET = 32 * 1024  # bytes of a record per packet; two unread ones fit any socket buffer
MAILBOX = 1 << 20  # bytes on the way from one worker to another, in two halves
HALF = MAILBOX // 2


class SharedFabric:
    """Made in the leader before it forks; every worker then takes its endpoint."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        self._mailboxes: dict[tuple[int, int], Tensor] = {}
        for a in range(size):
            for b in range(a):
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._sockets[a, b], self._sockets[b, a] = pair
                self._mailboxes[a, b], self._mailboxes[b, a] = (self.memory(MAILBOX) for _ in pair)

    def memory(self, nbytes: int) -> Tensor:
        if self.size == 1:
            return torch.zeros(nbytes, dtype=torch.uint8)
        return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]

    def endpoint(self, rank: int) -> "SharedTransport":
        """Closes the ends of the others: else their death would go unseen."""
        mine = {b: end for (a, b), end in self._sockets.items() if a == rank}
        for (a, _), end in self._sockets.items():
            if a != rank:
                end.close()
        return SharedTransport(rank, self.size, mine, self._mailboxes)

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
    ) -> None:
        self.rank, self.size = rank, size
        self.timesheet = Timesheet()
        self._sockets = sockets
        self._mailboxes = mailboxes
        self._unread: dict[tuple[int, bytes], deque[bytes]] = {}
        self._sent, self._taken, self._got = ([0] * size for _ in range(3))  # mailbox halves, per peer

    def exchange(self, record: bytes, ranks: Sequence[int] | None = None) -> list[bytes]:
        """Records longer than a packet go in rounds; the first packet tells how many."""
        group = range(self.size) if ranks is None else ranks
        peers = [peer for peer in group if peer != self.rank]
        parts: dict[int, list[bytes]] = {peer: [] for peer in peers}
        length = struct.pack("<I", len(record))
        mine = [record[at : at + PACKET] for at in range(0, len(record), PACKET)] or [b""]
        rounds, done = len(mine), 0
        while done < rounds:
            part = mine[done] if done < len(mine) else b""
            for peer in peers:
                self._send(peer, RECORD + length + part)
            for peer in peers:
                packet = self._receive(peer, RECORD)
                rounds = max(rounds, -(-struct.unpack_from("<I", packet)[0] // PACKET))
                parts[peer].append(packet[4:])
            done += 1
        return [record if peer == self.rank else b"".join(parts[peer]) for peer in group]

    def fence(self) -> None:
        self.exchange(b"")

    def send(self, tensor: Tensor, peer: int) -> None:
        """Up to 1 MiB is on its way without the receiver's help; more waits for it."""
        self._send(peer, HEADER + header(tensor))
        box, flat = self._mailboxes[self.rank, peer], payload(tensor)
        for at in range(0, len(flat), HALF):
            while self._sent[peer] - self._taken[peer] >= 2:
                self._receive(peer, TAKEN)
                self._taken[peer] += 1
            piece = flat[at : at + HALF]
            half = self._sent[peer] % 2 * HALF
            box[half : half + len(piece)].copy_(piece)
            self._sent[peer] += 1
            self._send(peer, PIECE)

    def receive(self, peer: int) -> Tensor:
        tensor, flat = empty_from(self._receive(peer, HEADER))
        box = self._mailboxes[peer, self.rank]
        for at in range(0, len(flat), HALF):
            self._receive(peer, PIECE)
            piece = flat[at : at + HALF]
            half = self._got[peer] % 2 * HALF
            piece.copy_(box[half : half + len(piece)])
            self._got[peer] += 1
            self._send(peer, TAKEN)
        return tensor

    def close(self) -> None:
        for end in self._sockets.values():
            end.close()

    def _send(self, peer: int, packet: bytes) -> None:
        try:
            self._sockets[peer].send(packet)
        except OSError:
            raise PeerLost(self.rank, peer) from None

    def _receive(self, peer: int, kind: bytes) -> bytes:
        """The body of the next packet of `kind` from `peer`; others that come before it are kept."""
        kept = self._unread.get((peer, kind))
        if kept:
            return kept.popleft()
        began = time.perf_counter()
        while True:
            try:
                packet = self._sockets[peer].recv(PACKET + 64)
            except OSError:
                packet = b""
            if not packet:
                raise PeerLost(self.rank, peer)
            if packet[:1] == kind:
                self.timesheet.waited(time.perf_counter() - began)
                return packet[1:]
            self._unread.setdefault((peer, packet[:1]), deque()).append(packet[1:])
