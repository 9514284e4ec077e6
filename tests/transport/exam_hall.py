"""Where transports between processes sit the exam: `python exam_hall.py`, one request per line of stdin.

A process of its own, exec'd with one thread per process, because a fork from a test process that
has used several threads can hang. It imports torch once and forks the workers of every request.

A request with `hosts` (the host of every worker) is for workers that come to the hall as if started
apart: those of one host meet to share memory, and all of them are linked by gloo on the loopback.
"""

import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transport_exam as exam
from torch import Tensor

from samestep.launch.hosts.join_run import groups_on_host
from samestep.system.processes import die_with_parent
from samestep.transport.group_links import gloo_links
from samestep.transport.hosts import HostsTransport
from samestep.transport.rendezvous import Rendezvous
from samestep.transport.shared_fabric import SharedFabric
from samestep.transport.staged_links import StagedLinks
from samestep.transport.transport import Transport

Enter = Callable[[int], tuple[Transport, Tensor]]  # a worker's transport and memory, made in the worker
stores: Any = dist


def groups_of(size: int) -> dict[tuple[int, ...], int]:
    return dict.fromkeys([tuple(range(size)), *([(0, 2)] if size > 2 else [])], exam.OUTBOX)


def join(rank: int, hosts: tuple[int, ...], folder: str, timeout: float, *, staged: bool) -> tuple[Transport, Tensor]:
    """As a worker that was started by itself. folder: where all of them look for one another.

    staged: as workers with GPUs, whose tensors are copied before they leave.
    """
    store = stores.FileStore(f"{folder}/store", len(hosts))
    mates = [peer for peer, host in enumerate(hosts) if host == hosts[rank]]
    number, meeting = mates.index(rank), None
    if len(mates) > 1 and number == 0:
        meeting = Rendezvous.open(len(mates), lambda name: store.set(f"door {hosts[rank]}", name), timeout)
    elif len(mates) > 1:
        meeting = Rendezvous.join(store.get(f"door {hosts[rank]}").decode(), number, len(mates))
    fabric = SharedFabric(len(mates), groups_on_host(groups_of(len(hosts)), mates), meeting=meeting)
    memory = fabric.memory(exam.MEMORY)
    local = fabric.endpoint(number, timeout)
    links = gloo_links(stores.PrefixStore("links", store), rank, len(hosts), "127.0.0.1", timeout)
    return HostsTransport(rank, hosts, local, StagedLinks(links) if staged else links, epoch=3), memory


def work(enter: Enter, rank: int, request: dict[str, Any]) -> str:
    """A worker's verdict: nothing, or what went wrong."""
    try:
        transport, memory = enter(rank)
        assert (transport.rank, transport.size) == (rank, request["size"])
        if "question" in request:
            return exam.run_question(transport, memory, request["question"])
        return exam.lose_the_last(transport, request["verb"], request["departure"], request["after"])
    except BaseException:  # noqa: BLE001 - it becomes the verdict
        return traceback.format_exc()


def fork(enter: Enter, rank: int, request: dict[str, Any]) -> tuple[int, int]:
    """Process id of the worker, and a pipe that brings its verdict."""
    read, write = os.pipe()
    hall = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(hall)
        verdict = work(enter, rank, request)
        os.write(write, verdict.encode()[-60_000:])
        os._exit(1 if verdict else 0)
    os.close(write)
    return pid, read


def sit(request: dict[str, Any]) -> dict[str, list[Any]]:
    """Run one request in fresh workers."""
    if "hosts" in request:
        hosts = tuple(request["hosts"])
        with tempfile.TemporaryDirectory() as folder:
            timeout, staged = request.get("timeout", 60.0), request.get("staged", False)
            return verdicts(lambda rank: join(rank, hosts, folder, timeout, staged=staged), request)
    size = request["size"]
    fabric = SharedFabric(size, groups_of(size))
    memory = fabric.memory(exam.MEMORY)
    return verdicts(lambda rank: (fabric.endpoint(rank), memory), request, fabric.close)


def verdicts(enter: Enter, request: dict[str, Any], forked: Callable[[], None] = lambda: None) -> dict[str, list[Any]]:
    """forked: to do when all workers are there."""
    workers = [fork(enter, rank, request) for rank in range(request["size"])]
    forked()
    told, statuses = [], []
    for pid, read in workers:
        if request.get("departure") == exam.STOPS and pid == workers[-1][0]:
            os.kill(pid, signal.SIGKILL)  # the others have said what became of it
        with os.fdopen(read) as pipe:
            told.append(pipe.read())
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return {"verdicts": told, "statuses": statuses}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    gc.collect()
    gc.freeze()  # what was imported: else every collection goes through it
    for line in sys.stdin:
        before = open_files()
        result = sit(json.loads(line))
        gc.collect()
        print(json.dumps(result | {"leaked": open_files() - before}), flush=True)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    main()
