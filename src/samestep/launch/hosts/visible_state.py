"""State that joined workers show to an observer, and the process that watches those of one host.

    worker 0 of the host --exec--> watcher: watches all workers of the host, and reports
                        <--socket-> closed when worker 0 closes its connections, or dies: then the watcher ends

The watcher has the memory and the files from the workers' meeting, so no name is left behind.
"""

import atexit
import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samestep.launch.environment import ROOT
from samestep.launch.hosts.membership import Membership
from samestep.launch.request.request import Request
from samestep.launch.run.stall_watch import Member, write_stacks_to
from samestep.system import wire
from samestep.trace.whereabouts import SIZE, Whereabouts
from samestep.transport.rendezvous import Rendezvous

WATCHER = "import sys; sys.path.append(sys.argv[1]); from samestep.launch.hosts.host_watcher import main; main()"
PATIENCE = 5.0  # seconds for the watcher to end


@dataclass
class VisibleWorker:
    """One worker's visible state. memory, stacks: files; stacks has one for each worker of the host."""

    membership: Membership
    request: Request
    memory: int
    stacks: Sequence[int]

    @staticmethod
    def of(membership: Membership, request: Request, meeting: Rendezvous | None) -> "VisibleWorker | None":
        """Open it; None when stalls are not watched. All workers of the host must call it."""
        if not request.training.stall:
            return None
        ranks = membership.on_this_host
        if meeting is not None:
            memory, *stacks = [meeting.file(size) for size in (SIZE * len(ranks), *(0 for _ in ranks))]
            return VisibleWorker(membership, request, memory, stacks)
        memory = os.memfd_create("samestep")
        os.ftruncate(memory, SIZE)
        return VisibleWorker(membership, request, memory, [os.memfd_create("samestep")])

    def begin(self) -> tuple[Whereabouts, Callable[[], None] | None]:
        """This worker's whereabouts; and the function that ends the watcher, in the worker that has started it."""
        ranks, rank = self.membership.on_this_host, self.membership.world.rank
        number = ranks.index(rank)
        whereabouts = Whereabouts(mmap.mmap(self.memory, SIZE * len(ranks)), number)
        own = os.dup(self.stacks[number])
        write_stacks_to(own)  # it stays open as long as the process
        end = self._watcher() if number == 0 else None
        for file in (self.memory, *self.stacks):
            os.close(file)
        return whereabouts, end

    def _watcher(self) -> Callable[[], None]:
        ours, theirs = wire.pair()
        files = [theirs.fileno(), self.memory, *self.stacks]
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", WATCHER, str(ROOT), str(theirs.fileno())],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # it has died already
            wire.send(ours, self._setup())
        return closer(process, ours)

    def _setup(self) -> dict[str, Any]:
        """The message that the watcher starts with."""
        found, world = self.membership, self.membership.world
        host = found.hosts[world.rank]
        members = [
            Member(rank, slot, found.facts[rank]["pid"], self.stacks[slot], found.name(rank), host)
            for slot, rank in enumerate(found.on_this_host)
        ]
        return {
            "memory": self.memory,
            "members": [asdict(member) for member in members],
            "limit": self.request.training.stall,
            "run": found.facts[0]["run"],
            "host": host,
            "hosts": list(found.hosts),
            "names": [found.name(rank) for rank in range(world.size)],
            "host_names": [str(fact["name"]) for fact in found.facts],
            "address": world.address,
            "port": world.port,
            "store": f"samestep stalls {world.run} {world.epoch} {found.facts[0]['run']}",
            "worker_keeps_store": not world.joins_store,
        }


def closer(process: "subprocess.Popen[bytes]", end: socket.socket) -> Callable[[], None]:
    """Function that ends a watcher; called at the end of this process at the latest."""

    def close() -> None:
        atexit.unregister(close)
        end.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    atexit.register(close)
    return close
