"""Processes that were started apart meet: all of them, nobody else, in time, and without leaving anything."""

import contextlib
import gc
import multiprocessing
import os
import secrets
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from samestep.errors import PeerLost, TrainingFailed
from samestep.transport.rendezvous import Rendezvous

SPAWN = multiprocessing.get_context("spawn")
Told = list[str]


def open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def is_open(name: str) -> bool:
    """Whether the kernel's list of Unix sockets has a door of that name at which somebody listens."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(line[-1] == f"@{name}" and int(line[3], 16) & 0x10000 for line in lines)


def guest(name: str, rank: int, size: int, orders: Connection) -> None:
    """A process of its own: joins, writes its rank into memory, reads the next one's word from its socket."""
    try:
        meeting = Rendezvous.join(name, rank, size)
        memory, more = meeting.memory(size), meeting.memory(0)
        ends = meeting.sockets()
        meeting.close()
        first = memory.tolist()
        memory[rank] = 100 + rank
        for peer, end in ends.items():
            end.send(f"{rank} to {peer}".encode())
        heard = {peer: end.recv(100).decode() for peer, end in ends.items()}
        orders.send((first, len(more), heard))
        orders.recv()
        orders.send(memory.tolist())
    except BaseException as error:  # noqa: BLE001 - told to the test
        orders.send(error)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_meet_share_memory_of_zeros_and_are_connected_each_to_each(size: int) -> None:
    before, names = open_files(), list[str]()
    connections: dict[int, Connection] = {}
    processes: list[Any] = []

    def call_the_others(name: str) -> None:
        names.append(name)
        assert is_open(name)
        for rank in reversed(range(1, size)):  # whoever comes first, numbers count
            ours, theirs = SPAWN.Pipe()
            processes.append(SPAWN.Process(target=guest, args=(name, rank, size, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            connections[rank] = ours

    meeting = Rendezvous.open(size, call_the_others, 60)
    assert not is_open(names[0]), "the door is closed behind them"
    memory, _ = meeting.memory(size), meeting.memory(0)
    assert memory.tolist() == [0] * size
    ends = meeting.sockets()
    meeting.close()
    for peer, end in ends.items():
        end.send(f"0 to {peer}".encode())
    assert {peer: end.recv(100).decode() for peer, end in ends.items()} == {p: f"{p} to 0" for p in range(1, size)}
    for rank, connection in connections.items():
        first, empty, heard = connection.recv()
        assert first[rank] == 0
        assert empty == 0
        assert heard == {peer: f"{peer} to {rank}" for peer in range(size) if peer != rank}
    memory[0] = 100
    for connection in connections.values():
        connection.send("look again")
        assert connection.recv() == [100 + rank for rank in range(size)]
    for process in processes:
        process.join()
        process.close()
    for connection in connections.values():
        connection.close()
    for end in ends.values():
        end.close()
    del memory, _
    assert open_files() <= before + 1, "one is multiprocessing's own"


# ------------------------------------------------------------ guests as threads, for what needs no processes


Come = Callable[[str, list[socket.socket]], None]


def met(size: int, come: Come, timeout: float = 60) -> Rendezvous:
    """The first one's part, while `come` does what the others do; what sockets it keeps are open until the end."""
    kept: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def tell(name: str) -> None:
        threads.append(threading.Thread(target=come, args=(name, kept)))
        threads[-1].start()

    try:
        return Rendezvous.open(size, tell, timeout)
    finally:
        for thread in threads:
            thread.join()
        for end in kept:
            end.close()


def visit(name: str, *words: bytes) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        end.connect(f"\0{name}")
    except OSError:
        end.close()
        raise
    for word in words:
        end.send(word)
    return end


STRANGERS: dict[str, tuple[bytes, ...]] = {
    "says nothing": (),
    "says another thing": (b"GET / HTTP/1.1",),
    "says a number too large": ((7).to_bytes(4, "little"),),
    "says the first one's number": ((0).to_bytes(4, "little"),),
    "says too little": (b"\1",),
}


@pytest.mark.parametrize("leaves", [True, False], ids=["and leaves", "and stays"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_at_the_door_is_not_let_in_and_keeps_nobody_out(stranger: str, leaves: bool) -> None:
    before = open_files()
    guests: list[Rendezvous] = []

    def come(name: str, kept: list[socket.socket]) -> None:
        kept.append(visit(name, *STRANGERS[stranger]))
        if leaves:
            kept[-1].close()
        guests.append(Rendezvous.join(name, 1, 2))

    meeting = met(2, come)
    ours, theirs = meeting.memory(10), guests[0].memory(10)
    ours[3] = 7
    assert theirs[3] == 7
    del ours, theirs
    meeting.close()
    guests[0].close()
    assert open_files() == before


def test_two_with_one_number_are_one_too_many() -> None:
    """The first one is let in, the other one hears the end of its connection."""
    guests: list[Rendezvous] = []

    def come(name: str, kept: list[socket.socket]) -> None:
        kept.append(visit(name, (1).to_bytes(4, "little")))
        kept.append(visit(name, (1).to_bytes(4, "little")))
        guests.append(Rendezvous.join(name, 2, 3))

    met(3, come).close()
    guests[0].close()


@pytest.mark.parametrize("came", [0, 1])
def test_a_guest_that_never_comes_is_an_error_in_time(came: int) -> None:
    before, names = open_files(), list[str]()

    def come(name: str, kept: list[socket.socket]) -> None:
        names.append(name)
        kept.extend(visit(name, (rank + 1).to_bytes(4, "little")) for rank in range(came))

    missing = r"\[2\]" if came else r"\[1, 2\]"
    with pytest.raises(TrainingFailed, match=rf"workers {missing} of this host .* 0\.3 s"):
        met(3, come, 0.3)
    assert open_files() == before
    assert not is_open(names[0])


def test_time_does_not_begin_anew_with_every_stranger() -> None:
    """A stranger every few milliseconds, for ever: the end comes all the same."""

    def come(name: str, kept: list[socket.socket]) -> None:
        with contextlib.suppress(OSError):  # the door is closed, before or while it knocks
            while True:
                with visit(name) as end:
                    end.send(b"hello")

    with pytest.raises(TrainingFailed, match=r"have not come within 0\.3 s"):
        met(2, come, 0.3)


def test_a_door_that_is_closed_is_a_lost_worker() -> None:
    before = open_files()
    with pytest.raises(PeerLost, match="worker 1 lost worker 0"):
        Rendezvous.join(f"samestep-{secrets.token_hex(16)}", 1, 2)
    assert open_files() == before


def test_one_that_leaves_after_it_has_come_in_is_lost_for_the_others() -> None:
    ends: list[socket.socket] = []

    def come(name: str, kept: list[socket.socket]) -> None:
        ends.append(visit(name, (1).to_bytes(4, "little")))

    meeting = met(2, come)
    ends[0].close()
    with pytest.raises(PeerLost, match="worker 0 lost worker 1"):
        meeting.memory(100)
    meeting.close()


def test_the_first_ones_end_is_noticed_by_the_guests() -> None:
    guests: list[Rendezvous] = []
    met(2, lambda name, kept: guests.append(Rendezvous.join(name, 1, 2))).close()
    with pytest.raises(PeerLost, match="worker 1 lost worker 0"):
        guests[0].memory(100)
    with pytest.raises(PeerLost, match="worker 1 lost worker 0"):
        guests[0].sockets()
    guests[0].close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_of_another_user_is_not_let_in() -> None:
    guests: list[Rendezvous] = []

    def come(name: str, kept: list[socket.socket]) -> None:
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65_534)
                end = visit(name, (1).to_bytes(4, "little"))
                os._exit(0 if end.recv(1) == b"" else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "it hears the end of its connection"
        guests.append(Rendezvous.join(name, 1, 2))

    met(2, come).close()
    guests[0].close()
