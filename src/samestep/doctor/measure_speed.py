"""Measurement of this machine, in a process made for it: pinned as the fork server is, torch imported, one thread.

    command --exec--> this process --fork--> one thread | all threads | two workers

Each measurement has a fork of its own: a process that once ran several threads cannot be forked from.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from samestep.doctor.facts import MachineSpeed
from samestep.numerics.kernel_fingerprint import kernel_hashes
from samestep.plan.link_times import LinkTimes
from samestep.system.device import instruction_set
from samestep.system.json_values import value_from
from samestep.system.processes import die_with_parent, fork, num_threads
from samestep.transport.shared_fabric import SharedFabric
from samestep.transport.timing import measure_links, outboxes

COPIED = 64 * 1024**2  # bytes, more than a cache holds
SIDE = 1024  # of the matrices
ROUNDS = 50
PATIENCE = 0.4  # seconds for one measurement


def main() -> None:
    """Measure and write JSON. Arguments: number of the file to write to, threads, process id of the command."""
    die_with_parent(int(sys.argv[4]))
    with os.fdopen(int(sys.argv[2]), "w") as file:
        json.dump(asdict(measure(int(sys.argv[3]))), file)


def measure(threads: int) -> MachineSpeed:
    """The speed of this machine. Call it in a process with one thread; it takes about three seconds."""
    assert num_threads() == 1, "a process forked from one with threads hangs"
    one, everything = (start_in_fork(partial(speeds, count))() for count in (1, threads))
    return MachineSpeed(
        isa=instruction_set("cpu"),
        threads=threads,
        mkl=torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
        onednn=torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        copy=one["copy"],
        copy_all=everything["copy"],
        products=one["products"],
        products_all=everything["products"],
        links=link_times(),
        gpus=gpus(),
        kernels=start_in_fork(kernel_hashes)(),
    )


def start_in_fork(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start `work` in a child; the returned function waits for its result, which JSON can hold."""
    ours, theirs = os.pipe()

    def answer() -> int:
        os.close(ours)
        with os.fdopen(theirs, "w") as file:
            json.dump(work(), file)
        return 0

    child = fork(answer)
    os.close(theirs)
    return partial(_result, ours, child)


def _result(end: int, child: int) -> Any:
    with os.fdopen(end) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError(f"a process that measures ended with exit status {os.waitstatus_to_exitcode(status)}")
    return json.loads(text)


def speeds(threads: int) -> dict[str, float]:
    """Bytes copied per second and FLOP/s of matrix products. Call it in a fork."""
    torch.set_num_threads(threads)
    source, target = torch.ones(COPIED, dtype=torch.uint8), torch.zeros(COPIED, dtype=torch.uint8)
    a, b = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    out = torch.empty(SIDE, SIDE)
    copy, product = median_seconds(lambda: target.copy_(source)), median_seconds(lambda: torch.mm(a, b, out=out))
    return {"copy": COPIED / copy, "products": 2 * SIDE**3 / product}


def median_seconds(work: Callable[[], object]) -> float:
    """Median seconds of `work` over at least three rounds, after one that does not count."""
    work()
    times: list[float] = []
    end = time.perf_counter() + PATIENCE
    while len(times) < 3 or (len(times) < ROUNDS and time.perf_counter() < end):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def link_times() -> LinkTimes:
    """Times of exchanges between two workers of this machine, forked as workers of a run are."""
    fabric = SharedFabric(2, outboxes())
    results = [start_in_fork(partial(_worker, fabric, rank)) for rank in range(2)]
    fabric.close()
    found = [result() for result in results]
    times: LinkTimes = value_from(LinkTimes, found[0])
    return times


def _worker(fabric: SharedFabric, rank: int) -> dict[str, Any]:
    transport = fabric.endpoint(rank)
    try:
        return asdict(measure_links(transport))
    finally:
        transport.close()


def gpus() -> tuple[str, ...]:
    """Descriptions of the GPUs. Call it last: a process that has asked for GPUs cannot be forked from."""
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return tuple(f"{gpu.name}, {gpu.total_memory / 1024**3:.1f} GiB, sm_{gpu.major}{gpu.minor}" for gpu in found)
