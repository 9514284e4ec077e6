"""Tensors between workers of one host, through memory that both see; packets announce them.

send      through a mailbox of the pair, slot by slot; a worker that waits also empties its mailboxes,
          so two workers that send to one another do not block
move      through the sender's outbox for the group, written once for all readers:
          half 0, half 1, half 0, ...; when a worker comes to its third move of a group, all
          others have begun their second, so nobody reads the first any more
"""

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from samestep.transport.strides import empty_from, header, payload, view_from
from samestep.transport.transport import Counted

HEADER, PIECE, TAKEN, MOVE = b"H", b"P", b"T", b"M"  # first byte of a packet
SLOT = 512 * 1024  # bytes of a mailbox slot
SLOTS = 2  # per direction of a pair
ALIGN = 64
PLACE = struct.Struct("<qI")  # of a moved tensor: its byte in the outbox (-1: by mail), bytes of its header


class PacketLine(Protocol):
    """A worker's packets to others, as tensors need them."""

    rank: int
    ranks: Sequence[int]
    on_tensor: Mapping[bytes, Callable[[int, bytes], None]]

    def send(self, peer: int, packet: bytes) -> None: ...

    def receive(self, peer: int, kind: bytes) -> bytes: ...

    def wait(self, peer: int, ready: Callable[[], bool]) -> None: ...


@dataclass(frozen=True)
class Boxes:
    """Shared memory of all workers of a host. slots: of a mailbox."""

    mailboxes: Mapping[tuple[int, int], Tensor]  # by sender and receiver
    outboxes: Mapping[tuple[tuple[int, ...], int], Tensor]  # by group and sender
    slots: int


class SharedTensors:
    """One worker's mailboxes and outboxes."""

    def __init__(self, packets: PacketLine, boxes: Boxes, counted: Counted) -> None:
        self.rank, size = packets.rank, len(packets.ranks)
        self._packets, self._boxes, self._counted = packets, boxes, counted
        self._moves: dict[tuple[int, ...], int] = {}
        self._coming: dict[int, tuple[Tensor, Tensor]] = {}  # a tensor that arrives, and its bytes still to come
        self._inbox: dict[int, deque[Tensor]] = {peer: deque() for peer in range(size) if peer != self.rank}
        self._sent, self._taken, self._got = ([0] * size for _ in range(3))  # mailbox slots, per peer
        packets.on_tensor = {HEADER: self._announced, PIECE: self._piece_came, TAKEN: self._piece_taken}

    def send(self, tensor: Tensor, peer: int) -> None:
        """Send through free slots without the receiver's help; more than fits waits for it."""
        self._packets.send(peer, HEADER + header(tensor))
        box, flat = self._boxes.mailboxes[self.rank, peer], payload(tensor)
        slots = self._boxes.slots
        for at in range(0, len(flat), SLOT):
            self._packets.wait(peer, lambda: self._sent[peer] - self._taken[peer] < slots)
            piece = flat[at : at + SLOT]
            slot = self._sent[peer] % slots * SLOT
            box[slot : slot + len(piece)].copy_(piece)
            self._sent[peer] += 1
            self._packets.send(peer, PIECE)

    def receive(self, peer: int) -> Tensor:
        box = self._inbox[peer]
        self._packets.wait(peer, lambda: bool(box))
        self._counted.moved += box[0].numel() * box[0].element_size()
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
            self._packets.send(peer, MOVE + packet)
        for peer, tensor in mail:
            self.send(tensor, peer)
        announced = {peer: self._packets.receive(peer, MOVE) for peer in packets}
        found = []
        for peer in sources:
            place, length = PLACE.unpack_from(announced[peer])
            described = announced[peer][PLACE.size : PLACE.size + length]
            announced[peer] = announced[peer][PLACE.size + length :]
            if place < 0:
                found.append(self.receive(peer))
                continue
            found.append(view_from(described, self._half(group, peer, number)[place:]))
            self._counted.moved += found[-1].numel() * found[-1].element_size()
        return found

    def _half(self, group: tuple[int, ...], rank: int, number: int) -> Tensor:
        box = self._boxes.outboxes.get((group, rank), torch.empty(0, dtype=torch.uint8))
        return box[number % 2 * (len(box) // 2) :][: len(box) // 2]

    def _announced(self, peer: int, body: bytes) -> None:
        self._coming[peer] = empty_from(body)
        self._deliver(peer)

    def _piece_came(self, peer: int, body: bytes) -> None:
        slot = self._got[peer] % self._boxes.slots * SLOT
        tensor, flat = self._coming[peer]
        piece = flat[:SLOT]
        piece.copy_(self._boxes.mailboxes[peer, self.rank][slot : slot + len(piece)])
        self._got[peer] += 1
        self._coming[peer] = tensor, flat[SLOT:]
        self._packets.send(peer, TAKEN)
        self._deliver(peer)

    def _piece_taken(self, peer: int, body: bytes) -> None:
        self._taken[peer] += 1

    def _deliver(self, peer: int) -> None:
        """Put a tensor whose bytes have all come into the inbox."""
        tensor, rest = self._coming[peer]
        if not len(rest):
            self._inbox[peer].append(tensor)
            del self._coming[peer]


def _put(outbox: Tensor, at: int, tensor: Tensor) -> tuple[int, int]:
    """Write a tensor's bytes at `at`; returns their place (-1: they do not fit) and that of the next ones."""
    flat = payload(tensor)
    if at + len(flat) > len(outbox):
        return -1, at
    outbox[at : at + len(flat)].copy_(flat)
    return at, -(-(at + len(flat)) // ALIGN) * ALIGN
