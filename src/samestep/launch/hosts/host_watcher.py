"""The watcher of one host: a process beside joined workers. It starts without torch.

host a   watcher --what it sees--> the run's store <--what it sees-- watcher   host b
         reports what holds up the run                               reports it only if a is silent
"""

import contextlib
import json
import mmap
import os
import select
import socket
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from samestep.diagnose.stall import WorkerView, aged
from samestep.launch.run.stall_watch import Member, StallWatch
from samestep.system import wire
from samestep.system.json_values import value_from
from samestep.trace.whereabouts import SIZE

SILENT = 3  # periods without news, after which a host is silent
STARTUP = 20.0  # seconds for the watcher of another host to start: it imports torch, at low priority
KNOCK = 1.0  # seconds for the kernel of another host to answer


def main() -> None:
    """With the arguments: folder of the package, number of the socket to the worker that has started it."""
    end = socket.socket(fileno=int(sys.argv[2]))
    setup, _ = wire.receive(end)
    if setup is not None:
        watch_host(setup, end)


def watch_host(setup: dict[str, Any], end: socket.socket) -> None:
    """Watch until the other end of the socket is closed. setup: the first message."""
    members = [Member(**{**member, "host_name": setup["host_names"][member["rank"]]}) for member in setup["members"]]
    watched = StallWatch(mmap.mmap(setup["memory"], SIZE * len(members)), members, setup["limit"], setup["run"])
    relay = Relay(setup, watched.period) if len(set(setup["hosts"])) > 1 else None
    while True:
        ready, _, _ = select.select([end], [], [], watched.due_in())
        if not ready and watched.due_in():
            continue
        others = {} if relay is None else relay.others(watched.views())
        for text, _ in watched.look(others):
            if relay is None or relay.reports():
                print(text, file=sys.stderr, flush=True)
        if ready:
            os._exit(0)  # whatever the relay's thread waits for


class Relay:
    """Exchange of what is seen between the watchers of all hosts."""

    def __init__(self, setup: dict[str, Any], period: float) -> None:
        self._setup, self._period = setup, period
        self._own = ""
        self._heard: dict[int, tuple[float, str]] = {}  # by host: when something new came, and what
        self._began = time.monotonic()
        self._count = 0
        threading.Thread(target=self._run, daemon=True).start()

    def reports(self) -> bool:
        """Whether this watcher reports to people: that of worker 0's host, or one that hears nothing from there."""
        return bool(self._setup["host"] == 0 or self._age(0) > SILENT * self._period)

    def others(self, own: dict[int, WorkerView]) -> dict[int, WorkerView]:
        """Latest views of the workers of other hosts. own: those of this host, which are sent there."""
        self._count += 1
        self._own = json.dumps({"word": self._count, "workers": [asdict(worker) for worker in own.values()]})
        now, found = time.monotonic(), dict[int, WorkerView]()
        for rank, host in enumerate(self._setup["hosts"]):
            if host != self._setup["host"]:
                found[rank] = WorkerView(rank, self._setup["names"][rank], host, self._setup["host_names"][rank])
        for at, text in list(self._heard.values()):
            for fields_of in json.loads(text)["workers"]:
                found[fields_of["rank"]] = aged(value_from(WorkerView, fields_of), now - at)
        for rank, worker in found.items():
            if (age := self._age(worker.host)) > SILENT * self._period:
                found[rank] = replace(worker, silent=age, keeps_store=rank == 0 and self._store_is_mute())
        return found

    def _age(self, host: int) -> float:
        """Seconds since another host's last news; 0 as long as its watcher may still be starting."""
        at, _ = self._heard.get(host, (self._began + STARTUP, ""))
        return max(0.0, time.monotonic() - at)

    def _store_is_mute(self) -> bool:
        """Whether the host of the store can be reached, so that it is worker 0 that does not answer."""
        if not self._setup["worker_keeps_store"]:
            return False
        try:
            socket.create_connection((self._setup["address"], self._setup["port"]), timeout=KNOCK).close()
        except OSError:
            return False
        return True

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # to import torch is no hurry
        import torch.distributed as dist

        stores: Any = dist
        store = stores.PrefixStore(
            self._setup["store"],
            stores.TCPStore(
                self._setup["address"], self._setup["port"], is_master=False, wait_for_workers=False,
                timeout=timedelta(days=1),
            ),
        )  # fmt: skip
        own, others = self._setup["host"], sorted(set(self._setup["hosts"]) - {self._setup["host"]})
        with contextlib.suppress(RuntimeError):  # the worker that keeps the store has ended; to the others it is silent
            while True:
                if self._own:
                    store.set(f"seen {own}", self._own)
                for host in others:
                    if store.check([f"seen {host}"]):
                        text = store.get(f"seen {host}").decode()
                        if text != self._heard.get(host, (0.0, ""))[1]:
                            self._heard[host] = time.monotonic(), text
                time.sleep(self._period / 2)
