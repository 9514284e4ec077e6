"""A contender on test hosts, one worker on each."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from rounds import Contender

from hosts import Hosts

SCRIPT = Path(__file__).with_name("contender.py")


class OnHosts(Contender):
    """One worker on each host.

    slowed    samestep, with half the CPU for the second host
    alone     samestep on the first host only
    plain     a bare loop there
    counted   samestep, which writes what its plan says of bytes
    """

    ports = itertools.count(29_500)

    def __init__(self, name: str, model: str, hosts: Hosts) -> None:
        super().__init__(name, [name.split()[0], model, *name.split()[1:]])
        self.hosts = hosts

    def start(self) -> None:
        for name in ("ask", "answer"):
            os.mkfifo(self.folder / name)
        kind, model, *option = self.command
        part = "samestep" if kind in ("slowed", "alone") else kind
        command = [sys.executable, str(SCRIPT), part, model, *option, str(self.folder)]
        options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {"GLOO_SOCKET_IFNAME": "eth"}}
        if kind in ("plain", "alone"):
            self.workers = [self.hosts[0].popen(command, stdin=subprocess.DEVNULL)]
        else:
            cpu = [None, 0.5 if kind == "slowed" else None]
            self.workers = self.hosts.start_workers([1, 1], command, next(self.ports), **options, cpu=cpu)
        self.process = self.workers[0]
        self._answers = (self.folder / "answer").open()
        self._asks = (self.folder / "ask").open("w", buffering=1)
        assert self._answers.readline() == "ready\n", f"{self.name} did not come up"

    def stop(self) -> None:
        super().stop()
        for worker in self.workers[1:]:
            worker.kill()
