"""Processes of one host that were started apart meet, and come to share memory.

The first one opens a door: a Unix socket without a name in the file system, which is gone with it. It
lets in only processes of the same user, as many as it expects, and closes the door behind them. Then
it hands out memory and socket pairs as open files; nothing of it has a name that could be left behind.
"""

import mmap
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samestep.errors import PeerLost, TrainingFailed

UCRED = struct.Struct("3i")  # pid, uid, gid


class Rendezvous:
    """One process's part in it, as number `rank` of `size`. All must ask for the same things in the same order."""

    def __init__(self, rank: int, size: int, guests: dict[int, socket.socket], host: socket.socket | None) -> None:
        self.rank, self.size = rank, size
        self._guests, self._host = guests, host

    @staticmethod
    def open(size: int, tell: Callable[[str], None], timeout: float) -> "Rendezvous":
        """For the first process: `tell` the others the door's name, and wait for them."""
        name = f"samestep-{secrets.token_hex(16)}"
        guests: dict[int, socket.socket] = {}
        end = time.monotonic() + timeout
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door, selectors.DefaultSelector() as waiting:
            door.bind(f"\0{name}")
            door.listen(size)
            waiting.register(door, selectors.EVENT_READ)
            tell(name)
            try:
                while missing := sorted(set(range(1, size)) - set(guests)):
                    left = end - time.monotonic()
                    ready = waiting.select(left) if left > 0 else []
                    if not ready:
                        raise TrainingFailed(
                            f"workers {missing} of this host (numbered there) have not come within {timeout:g} s"
                        )
                    for key, _ in ready:
                        if key.fileobj is door:
                            waiting.register(door.accept()[0], selectors.EVENT_READ)
                        else:
                            waiting.unregister(key.fileobj)
                            assert isinstance(key.fileobj, socket.socket), "nothing else was registered"
                            _let_in(key.fileobj, missing, guests)
            except BaseException:
                for guest in guests.values():
                    guest.close()
                raise
            finally:
                for key in [*waiting.get_map().values()]:  # who came, and said nothing
                    if isinstance(key.fileobj, socket.socket):
                        key.fileobj.close()
        return Rendezvous(0, size, guests, None)

    @staticmethod
    def join(name: str, rank: int, size: int) -> "Rendezvous":
        """For the others. Raises PeerLost when the first is gone."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            end.connect(f"\0{name}")
            end.send(rank.to_bytes(4, "little"))
        except OSError:
            end.close()
            raise PeerLost(rank, 0) from None
        return Rendezvous(rank, size, {}, end)

    def memory(self, nbytes: int) -> Tensor:
        """A uint8 tensor of zeros that all of them see."""
        file = self.file(max(nbytes, 1))
        try:
            return torch.frombuffer(mmap.mmap(file, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]
        finally:
            os.close(file)

    def file(self, nbytes: int) -> int:
        """An open file without a name that all of them see, of zeros."""
        if self._host is not None:
            return self._take(1)[0]
        file = os.memfd_create("samestep", os.MFD_CLOEXEC)
        os.ftruncate(file, nbytes)
        for rank in self._guests:
            self._give(rank, file)
        return file

    def sockets(self) -> dict[int, socket.socket]:
        """A connection to each of the others."""
        if self._host is not None:
            peers = [rank for rank in range(self.size) if rank != self.rank]
            return {rank: socket.socket(fileno=file) for rank, file in zip(peers, self._take(len(peers)), strict=True)}
        ends: dict[int, dict[int, socket.socket]] = {rank: {} for rank in range(self.size)}
        for a in range(self.size):
            for b in range(a):
                ends[a][b], ends[b][a] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for rank in self._guests:
            for _, end in sorted(ends[rank].items()):
                self._give(rank, end.fileno())
                end.close()
        return ends[0]

    def close(self) -> None:
        for end in [*self._guests.values(), *([self._host] if self._host is not None else [])]:
            end.close()

    def _give(self, rank: int, file: int) -> None:
        try:
            socket.send_fds(self._guests[rank], [b"x"], [file])
        except OSError:
            raise PeerLost(self.rank, rank) from None

    def _take(self, count: int) -> list[int]:
        assert self._host is not None
        found: list[int] = []
        for _ in range(count):
            try:
                text, files, _, _ = socket.recv_fds(self._host, 1, 1)
            except OSError:
                text, files = b"", []
            if not text or not files:
                raise PeerLost(self.rank, 0)
            found += files
        return found


def _let_in(guest: socket.socket, missing: Sequence[int], guests: dict[int, socket.socket]) -> None:
    """Whoever has said something, if it is one of those that are missing."""
    _, uid, _ = UCRED.unpack(guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    try:
        word = guest.recv(8)
    except OSError:
        word = b""
    number = int.from_bytes(word, "little")
    if uid == os.getuid() and len(word) == 4 and number in missing and number not in guests:
        guests[number] = guest
    else:
        guest.close()
