"""Where transports between processes sit the exam: `python exam_hall.py`, one request per line of stdin.

A process of its own, exec'd with one thread per process, because a fork from a test process that
has used several threads can hang. It imports torch once and forks the workers of every request.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import transport_exam as exam

from samestep.launch.processes import die_with_parent
from samestep.transport.shared import SharedFabric


def work(fabric: SharedFabric, rank: int, request: dict[str, Any], memory: Any) -> str:
    """A worker's verdict: nothing, or what went wrong."""
    try:
        if "question" in request:
            return exam.run_question(fabric, rank, memory, request["question"])
        transport = fabric.endpoint(rank)
        return exam.lose_the_last(transport, request["verb"], request["departure"], request["after"])
    except BaseException:  # noqa: BLE001 - it becomes the verdict
        return traceback.format_exc()


def fork(fabric: SharedFabric, rank: int, request: dict[str, Any], memory: Any) -> tuple[int, int]:
    """Process id of the worker, and a pipe that brings its verdict."""
    read, write = os.pipe()
    hall = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(hall)
        verdict = work(fabric, rank, request, memory)
        os.write(write, verdict.encode()[-60_000:])
        os._exit(1 if verdict else 0)
    os.close(write)
    return pid, read


def sit(request: dict[str, Any]) -> dict[str, list[Any]]:
    """Run one request in fresh workers."""
    size = request["size"]
    fabric = SharedFabric(size, dict.fromkeys([tuple(range(size)), *([(0, 2)] if size > 2 else [])], exam.OUTBOX))
    memory = fabric.memory(exam.MEMORY)
    workers = [fork(fabric, rank, request, memory) for rank in range(fabric.size)]
    fabric.close()
    verdicts, statuses = [], []
    for pid, read in workers:
        with os.fdopen(read) as pipe:
            verdicts.append(pipe.read())
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return {"verdicts": verdicts, "statuses": statuses}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    for line in sys.stdin:
        before = open_files()
        result = sit(json.loads(line))
        gc.collect()
        print(json.dumps(result | {"leaked": open_files() - before}), flush=True)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    main()
