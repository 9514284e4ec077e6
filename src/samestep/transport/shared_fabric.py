"""Processes of one host: the memory that all of them see, and the sockets between them.

Memory is an anonymous shared mapping made before the fork: it has no name to leave behind and does
not count against the size of /dev/shm. Workers that were not forked from one process get both by a rendezvous.
"""

import mmap
import socket
from collections.abc import Mapping

import torch
from torch import Tensor

from samestep.transport.rendezvous import Rendezvous
from samestep.transport.shared_memory import Packets, SharedTransport
from samestep.transport.shared_tensors import SLOT, SLOTS, Boxes


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
        """device: of the memory of a worker that shares it with nobody; memory that is shared is the CPU's."""
        assert size == 1 or device is None, "workers that share memory are on the CPU"
        self.size = size
        self._meeting, self._device = meeting, device
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        mailboxes: dict[tuple[int, int], Tensor] = {}
        outboxes = {
            (group, rank): self.memory(2 * nbytes)
            for group, nbytes in (groups or {}).items()
            for rank in group
            if len(group) > 1
        }
        if meeting is not None:
            self._sockets = {(meeting.rank, peer): end for peer, end in meeting.sockets().items()}
        for a in range(size):
            for b in range(a):
                mailboxes[a, b], mailboxes[b, a] = (self.memory(slots * SLOT) for _ in range(2))
                if meeting is not None:
                    continue
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._sockets[a, b], self._sockets[b, a] = pair
        self._boxes = Boxes(mailboxes, outboxes, slots)

    def memory(self, nbytes: int) -> Tensor:
        if self.size == 1:
            return torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
        if self._meeting is not None:
            return self._meeting.memory(nbytes)
        return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]

    def endpoint(self, rank: int, timeout: float | None = None) -> SharedTransport:
        """Worker `rank`'s transport. Closes the sockets of the other workers, whose death would go unnoticed otherwise.

        timeout: seconds after which a worker that does not answer counts as lost; None: never.
        """
        if self._meeting is not None:
            self._meeting.close()
        own = {b: end for (a, b), end in self._sockets.items() if a == rank}
        for (a, _), end in self._sockets.items():
            if a != rank:
                end.close()
        return SharedTransport(Packets(rank, own, timeout), self._boxes)

    def close(self) -> None:
        """Close all sockets; for the leader, which takes no endpoint."""
        for end in self._sockets.values():
            end.close()
