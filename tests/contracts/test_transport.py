"""One exam per interface: every transport sits it, the next one too. The questions are in transport_exam.py."""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transport_exam as exam

from samestep.launch.environment import PINNED
from samestep.transport.shared import SharedFabric
from samestep.transport.threads import ThreadFabric

SIZES = (1, 2, 3)
Hall = Callable[..., list[str]]


def in_threads(size: int, **request: Any) -> list[str]:
    """The verdicts of `size` workers that are threads of this process."""
    fabric = ThreadFabric(size)
    memory = fabric.memory(exam.MEMORY)
    verdicts = ["never came to an end"] * size

    def work(rank: int) -> None:
        try:
            if "question" in request:
                verdicts[rank] = exam.run_question(fabric, rank, memory, request["question"])
            else:
                verdicts[rank] = exam.lose_the_last(fabric.endpoint(rank), **request)
        except BaseException:  # noqa: BLE001 - it becomes the verdict
            verdicts[rank] = traceback.format_exc()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


@pytest.fixture(scope="module")
def in_processes() -> Iterator[Hall]:
    """The verdicts of `size` workers that are processes, forked in a process made for it."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("exam_hall.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | PINNED,
        text=True,
        start_new_session=True,
    ) as hall:
        assert hall.stdin is not None
        assert hall.stdout is not None

        def sit(size: int, **request: Any) -> list[str]:
            print(json.dumps({"size": size, **request}), file=hall.stdin, flush=True)
            result = json.loads(hall.stdout.readline())
            assert result["leaked"] == 0, "file descriptors stay open in the process that made the fabric"
            expected = {"exits": 7, "is killed": -9}.get(request.get("departure", ""), 0)
            if not any(result["verdicts"]):
                assert result["statuses"] == [0] * (size - 1) + [expected]
            return result["verdicts"]

        try:
            yield sit
        finally:
            hall.stdin.close()
            try:
                hall.wait(timeout=10)
            except subprocess.TimeoutExpired:  # a question hangs; its workers are of the hall's own session
                os.killpg(hall.pid, signal.SIGKILL)


@pytest.fixture(params=["threads", "processes"])
def hall(request: pytest.FixtureRequest) -> Hall:
    return in_threads if request.param == "threads" else request.getfixturevalue("in_processes")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("question", exam.EXAM)
def test_the_exam(hall: Hall, question: str, size: int) -> None:
    assert hall(size, question=question) == [""] * size


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("departure", exam.DEPARTURES)
@pytest.mark.parametrize("verb", exam.VERBS)
def test_a_lost_worker_is_noticed_at_once(in_processes: Hall, verb: str, departure: str, after: int) -> None:
    assert in_processes(3, verb=verb, departure=departure, after=after) == [""] * 3


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("verb", exam.VERBS)
def test_a_thread_that_leaves_is_noticed_at_once(verb: str, size: int, after: int) -> None:
    assert in_threads(size, verb=verb, departure="closes", after=after) == [""] * size


def test_the_exam_can_be_failed(hall: Hall) -> None:
    """A check of the hall itself: what a worker raises comes back as its verdict."""
    verdicts = hall(2, question="no such question")
    assert all("KeyError" in verdict for verdict in verdicts)


@pytest.mark.parametrize("size", SIZES)
def test_a_fabric_may_give_no_memory_at_all(size: int) -> None:
    for fabric in (ThreadFabric(size), SharedFabric(size)):
        assert fabric.memory(0).shape == (0,)
        assert fabric.memory(0).dtype == torch.uint8
        if isinstance(fabric, SharedFabric):
            fabric.close()
