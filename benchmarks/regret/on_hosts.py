"""Contenders on two test hosts, a worker on each."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from groups import Group
from rounds import Contender

from hosts import Hosts

PORTS = itertools.count(29_600)


class OnHosts(Contender):
    """One worker on each of two hosts."""

    def __init__(self, name: str, command: list[str], hosts: Hosts, cpu: float | None) -> None:
        super().__init__(name, command)
        self.hosts, self.cpu = hosts, cpu

    def launch(self, command: list[str]) -> "subprocess.Popen[Any]":
        self.workers = start_on(self.hosts, command, self.cpu)
        return self.workers[0]

    def stop(self) -> None:
        super().stop()
        for worker in self.workers[1:]:
            worker.kill()


def start_on(hosts: Hosts, command: list[str], cpu: float | None) -> list["subprocess.Popen[Any]"]:
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = {"GLOO_SOCKET_IFNAME": "eth"}
    return hosts.start_workers([1, 1], command, next(PORTS), env=env, cpu=[None, cpu], **quiet)


def candidates_on(hosts: Hosts, group: Group, folder: Path) -> list[dict[str, Any]]:
    """Candidates of the planner on the hosts, its pick first."""
    file, script = folder / "candidates.json", Path(__file__).with_name("predict_on_hosts.py")
    command = [sys.executable, str(script), group.model, str(group.shards), str(group.slices or 0), str(file)]
    for worker in start_on(hosts, command, group.cpu):
        assert worker.wait(300) == 0, "a host could not decide"
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found
