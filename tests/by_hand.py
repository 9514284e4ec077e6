"""Workers that a test starts one by one with torch's variables, on this host or on test hosts; what they said last."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import warm
from commands import MARK, Command, Ended, free_port, wait_until
from hosts import Hosts

IN_TIME = 240.0  # seconds; a worker that is still there then hangs


@dataclass
class ByHand:
    """One run, in a folder. counts: workers on each host. hosts: none for workers of this host. cold: by exec."""

    folder: Path
    counts: Sequence[int]
    hosts: Hosts | None = None
    cold: bool = False
    started: dict[int, "subprocess.Popen[str]"] = field(default_factory=dict)  # by rank

    def __post_init__(self) -> None:
        self.command = Command(self.folder)
        self.port = free_port()
        self.address = "127.0.0.1" if self.hosts is None else self.hosts[0].address
        self.host_of = [host for host, count in enumerate(self.counts) for _ in range(count)]
        self.size = len(self.host_of)

    def name(self, rank: int) -> str:
        """As a worker is called in messages."""
        return f"worker {rank} on host {socket.gethostname()}"

    def start(
        self,
        *arguments: object,
        ranks: Sequence[int] | None = None,
        each: Callable[[int], Sequence[object]] = lambda rank: (),
        env: Mapping[str, str] | None = None,
        **variables: str,
    ) -> None:
        """`python -m samestep train ...` as every worker (default: all). each: further arguments of one."""
        for rank in range(self.size) if ranks is None else ranks:
            own_arguments = ["train", *map(str, arguments), *map(str, each(rank))]
            world = {
                "RANK": str(rank),
                "WORLD_SIZE": str(self.size),
                "MASTER_ADDR": self.address,
                "MASTER_PORT": str(self.port),
            }
            own = {MARK: self.command.mark, "TMPDIR": str(self.command.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
            options = {
                "env": {**os.environ, **own, **world, **variables, **(env or {})},
                "cwd": self.folder,
                "text": True,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
            }
            if self.hosts is not None:
                self.started[rank] = self.hosts[self.host_of[rank]].samestep(own_arguments, cold=self.cold, **options)
            elif warm.is_possible() and not self.cold:
                self.started[rank] = warm.WarmCommand(own_arguments, start_new_session=True, **options)
            else:
                command = [sys.executable, "-m", "samestep", *own_arguments]
                self.started[rank] = subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]

    def end(self, *, stopped: Sequence[int] = ()) -> dict[int, Ended]:
        """All workers' ends, those of the stopped ones last and by force; nothing may be left behind."""
        found: dict[int, Ended] = {}
        try:
            for rank in [*(r for r in self.started if r not in stopped), *stopped]:
                if rank in stopped:
                    self.started[rank].kill()
                out, err = self.started[rank].communicate(timeout=IN_TIME)
                found[rank] = Ended(self.started[rank].returncode, out, err)
        finally:
            for process in self.started.values():
                process.kill()
                process.communicate()
        self.command.check_nothing_left()
        return found

    def is_stopped(self, rank: int) -> bool:
        """Whether the kernel says that a worker does not run since a signal."""
        return Path(f"/proc/{self.started[rank].pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def wait_until_stopped(self, rank: int) -> None:
        wait_until(f"worker {rank} to stop", lambda: self.is_stopped(rank))

    def go_on(self, rank: int) -> None:
        os.kill(self.started[rank].pid, signal.SIGCONT)

    def kill(self, rank: int) -> None:
        os.kill(self.started[rank].pid, signal.SIGKILL)


def last_line(ended: Ended) -> str:
    return ended.errors[-1] if ended.errors else ""
