"""The real command line in tests: start it, wait for what it does, find what it left behind.

Every command gets a mark in its environment, which its processes inherit, so that whatever else runs
on the machine is left alone and does not count.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import warm

MARK = warm.MARK
DEADLINE = 240.0  # seconds until a test gives up waiting; on a busy machine a command may take a minute
SHARED_MEMORY = Path("/dev/shm")


def wait_until(what: str, found: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """What `found` returns, once that is true."""
    end = time.monotonic() + deadline
    while not (result := found()):
        assert time.monotonic() < end, f"waited {deadline:.0f} s for {what}"
        time.sleep(0.005)
    return result


def hear_signals() -> None:
    """A test that runs in the background or under nohup passes on ignored signals; a command ignores them too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start_script(script: Path, *arguments: str, cold: bool = False, **options: Any) -> subprocess.Popen[str]:
    """A script as a process of its own, from the warm one unless `cold`."""
    if cold or not warm.is_possible():
        return subprocess.Popen([sys.executable, str(script), *arguments], text=True, **options)
    return warm.WarmCommand(list(arguments), script=script, text=True, **options)


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of stderr."""
        return self.err.splitlines()


@dataclass
class Command:
    """One `python -m samestep ...`, or another program of the same Python, in a folder of its own."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.temporary = self.folder / f"tmp-{self.mark}"
        self.temporary.mkdir()
        self._shared_memory = shared_memory()

    def start(
        self, *arguments: object, module: str | None = "samestep", cold: bool = False, **options: Any
    ) -> subprocess.Popen[str]:
        """cold: as a user starts it, by exec and with its own import of torch."""
        program = [sys.executable, *(["-m", module] if module else []), *map(str, arguments)]
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        if module == "samestep" and not cold and "preexec_fn" not in options and warm.is_possible():
            return warm.WarmCommand(list(map(str, arguments)), cwd=self.folder, env=environment, text=True, **streams)
        return subprocess.Popen(
            program, cwd=self.folder, env=environment, text=True, **{"preexec_fn": hear_signals} | streams
        )

    def run(self, *arguments: object, module: str | None = "samestep", cold: bool = False) -> Ended:
        """Run to the end, and hold that nothing is left behind."""
        with self.start(*arguments, module=module, cold=cold) as started:
            return self.end(started)

    def end(self, started: subprocess.Popen[str]) -> Ended:
        out, err = started.communicate(timeout=DEADLINE)
        self.check_nothing_left()
        return Ended(started.returncode, out or "", err or "")

    def processes(self) -> list[psutil.Process]:
        """All that are alive, the command first, then by age."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def family(self, started: subprocess.Popen[str], workers: int) -> dict[str, list[psutil.Process]]:
        """The processes by what they are, once there are `workers` workers. Loaders are the workers' children."""

        def complete() -> dict[str, list[psutil.Process]] | None:
            generations = [[psutil.Process(started.pid)]]
            try:
                for _ in range(4):
                    generations.append([child for parent in generations[-1] for child in parent.children()])
            except psutil.NoSuchProcess:
                return None
            names = ("command", "server", "leader", "worker", "loader")
            found = dict(zip(names, generations, strict=True))
            return found if len(found["worker"]) == workers else None

        return wait_until(f"{workers} workers", complete)  # type: ignore[no-any-return]

    def check_nothing_left(self) -> None:
        """No process, no socket or file in the folder for temporary ones, no segment, no unfinished file."""
        wait_until("the processes to vanish", lambda: not self.processes())
        wait_until("segments in /dev/shm to vanish", lambda: not (shared_memory() - self._shared_memory))
        left = [path.name for path in self.temporary.iterdir()]
        assert not left, left
        assert list(self.folder.rglob(".unfinished-*")) == []


def shared_memory() -> set[str]:
    """Names in /dev/shm that belong to no living process. torch names its segments after their maker."""
    names = set()
    for path in SHARED_MEMORY.iterdir():
        maker = path.name.split("_")[1:2]
        if not (maker and maker[0].isdigit() and psutil.pid_exists(int(maker[0]))):
            names.add(path.name)
    return names


def free_port() -> int:
    """One that nobody listens at now, and that the system gives to no connection: those begin at 32,768."""
    while True:
        port = random.randrange(20_000, 32_000)  # other processes of pytest look for one as well
        with contextlib.suppress(OSError), socket.socket() as end:
            end.bind(("127.0.0.1", port))
            return port
