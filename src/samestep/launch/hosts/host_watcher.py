"""The watcher of one host: a process beside workers that were started apart. It starts without torch.

host a   watcher --what it sees--> the run's store <--what it sees-- watcher   host b
         tells what holds up the run                                 tells it only if a is silent
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
from dataclasses import asdict, fields, replace
from datetime import timedelta
from typing import Any

from samestep.diagnose.stacks import Frame
from samestep.diagnose.stall import (
    OwnWork,
    Process,
    WorkerView,
    aged,
)
from samestep.launch.run.stall_watch import Member, StallWatch
from samestep.system import wire
from samestep.trace.whereabouts import SIZE

SILENT = 3  # periods without a word, after which a host is silent
COMING = 20.0  # seconds for the watcher of another host to be there: it imports torch, at low priority
KNOCK = 1.0  # seconds for the kernel of another host to answer


def main() -> None:
    """With the arguments: folder of the package, number of the socket to the worker that has started it."""
    end = socket.socket(fileno=int(sys.argv[2]))
    told, _ = wire.receive(end)
    if told is not None:
        watch(told, end)


def watch(told: dict[str, Any], end: socket.socket) -> None:
    """Until the other end of the socket is closed."""
    members = [Member(**{**member, "host_name": told["host_names"][member["rank"]]}) for member in told["members"]]
    watched = StallWatch(mmap.mmap(told["memory"], SIZE * len(members)), members, told["limit"], told["run"])
    relay = Relay(told, watched.period) if len(set(told["hosts"])) > 1 else None
    while True:
        ready, _, _ = select.select([end], [], [], watched.due_in())
        if not ready and watched.due_in():
            continue
        others = {} if relay is None else relay.others(watched.seen())
        for text, _ in watched.look(others):
            if relay is None or relay.speaks():
                print(text, file=sys.stderr, flush=True)
        if ready:
            os._exit(0)  # whatever the relay's thread waits for


class Relay:
    """Tells the watchers of other hosts what this one sees, and hears them."""

    def __init__(self, told: dict[str, Any], period: float) -> None:
        self._told, self._period = told, period
        self._own = ""
        self._heard: dict[int, tuple[float, str]] = {}  # by host: when something new came, and what
        self._began = time.monotonic()
        self._words = 0
        threading.Thread(target=self._run, daemon=True).start()

    def speaks(self) -> bool:
        """Whether this watcher tells people: that of worker 0's host, or one that hears nothing from there."""
        return bool(self._told["host"] == 0 or self._age(0) > SILENT * self._period)

    def others(self, own: dict[int, WorkerView]) -> dict[int, WorkerView]:
        """What was heard of the workers of other hosts. own: those of this one, which the others are told of."""
        self._words += 1
        self._own = json.dumps({"word": self._words, "workers": [asdict(worker) for worker in own.values()]})
        now, found = time.monotonic(), dict[int, WorkerView]()
        for rank, host in enumerate(self._told["hosts"]):
            if host != self._told["host"]:
                found[rank] = WorkerView(rank, self._told["names"][rank], host, self._told["host_names"][rank])
        for at, text in list(self._heard.values()):
            for fields_of in json.loads(text)["workers"]:
                found[fields_of["rank"]] = aged(worker_from(fields_of), now - at)
        for rank, worker in found.items():
            if (age := self._age(worker.host)) > SILENT * self._period:
                found[rank] = replace(worker, silent=age, keeps_store=rank == 0 and self._store_is_mute())
        return found

    def _age(self, host: int) -> float:
        """Seconds since another host said something new; 0 as long as its watcher may still be on its way."""
        at, _ = self._heard.get(host, (self._began + COMING, ""))
        return max(0.0, time.monotonic() - at)

    def _store_is_mute(self) -> bool:
        """Whether the host of the store can be reached, so that it is worker 0 who does not answer."""
        if not self._told["worker_keeps_store"]:
            return False
        try:
            socket.create_connection((self._told["address"], self._told["port"]), timeout=KNOCK).close()
        except OSError:
            return False
        return True

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # to import torch is no hurry
        import torch.distributed as dist

        stores: Any = dist
        store = stores.PrefixStore(
            self._told["store"],
            stores.TCPStore(
                self._told["address"], self._told["port"], is_master=False, wait_for_workers=False,
                timeout=timedelta(days=1),
            ),
        )  # fmt: skip
        own, others = self._told["host"], sorted(set(self._told["hosts"]) - {self._told["host"]})
        with contextlib.suppress(RuntimeError):  # who keeps the store has ended; to whoever is left it is silent
            while True:
                if self._own:
                    store.set(f"seen {own}", self._own)
                for host in others:
                    if store.check([f"seen {host}"]):
                        text = store.get(f"seen {host}").decode()
                        if text != self._heard.get(host, (0.0, ""))[1]:
                            self._heard[host] = time.monotonic(), text
                time.sleep(self._period / 2)


def worker_from(found: dict[str, Any]) -> WorkerView:
    """What `asdict` of another watcher made of a worker."""
    known = {field.name for field in fields(WorkerView)} - {"process", "loaders", "pace"}
    return WorkerView(
        **{name: value for name, value in found.items() if name in known},
        pace=None if found["pace"] is None else OwnWork(**found["pace"]),
        process=process_from(found["process"]),
        loaders=tuple(process_from(one) for one in found["loaders"]),
    )


def process_from(found: dict[str, Any]) -> Process:
    frame = found["frame"]
    return Process(**{**found, "frame": None if frame is None else Frame(**frame)})
