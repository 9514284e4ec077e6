"""Contenders on two test hosts, a worker on each."""

import itertools
import os
import subprocess
from typing import Any

from rounds import Contender

from hosts import Hosts

PORTS = itertools.count(29_600)
BURSTS = {"100mbit": "8kb", "1gbit": "64kb", "10gbit": "512kb"}  # half a millisecond at full speed


def two_hosts(rate: str) -> Hosts:
    return Hosts(2, rate=rate, burst=BURSTS[rate])


class OnHosts(Contender):
    """One worker on each of two hosts."""

    def __init__(self, name: str, command: list[str], hosts: Hosts, cpu: float | None) -> None:
        super().__init__(name, command)
        self.hosts, self.cpu = hosts, cpu

    def start(self) -> None:
        for name in ("ask", "answer"):
            os.mkfifo(self.folder / name)
        self.workers = start_on(self.hosts, [*self.command, str(self.folder)], self.cpu)
        self.process = self.workers[0]
        self.meet()

    def stop(self) -> None:
        super().stop()
        for worker in self.workers[1:]:
            worker.kill()


def start_on(hosts: Hosts, command: list[str], cpu: float | None) -> list["subprocess.Popen[Any]"]:
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = {"GLOO_SOCKET_IFNAME": "eth"}
    return hosts.start_workers([1, 1], command, next(PORTS), env=env, cpu=[None, cpu], **quiet)
