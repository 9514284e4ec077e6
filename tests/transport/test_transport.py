"""One exam per interface: every transport sits it, the next one too. The questions are in transport_exam.py.

Workers that share a machine sit it on one host, which is theirs, or on several that they pretend to be on.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transport_exam as exam

from samestep.launch.environment import PINNED
from samestep.transport.shared_fabric import SharedFabric
from samestep.transport.thread_hosts import ThreadHosts
from samestep.transport.threads import ThreadFabric

SIZES = (1, 2, 3)
LAYOUTS = ((0, 1), (0, 0, 1), (0, 1, 1), (0, 1, 2), (0, 1, 0, 1))  # the host of every worker
Hall = Callable[..., list[str]]


def in_threads(size: int, hosts: Sequence[int] | None = None, **request: Any) -> list[str]:
    """The verdicts of `size` workers that are threads of this process. hosts: that they pretend to be on."""
    fabric = ThreadFabric(size) if hosts is None else ThreadHosts(hosts)
    fabrics = fabric.fabrics if isinstance(fabric, ThreadHosts) else [fabric]
    memory = [host.memory(exam.MEMORY) for host in fabrics]
    verdicts = ["never came to an end"] * size

    def work(rank: int) -> None:
        try:
            transport = fabric.endpoint(rank)
            assert (transport.rank, transport.size) == (rank, size)
            if "question" in request:
                verdicts[rank] = exam.run_question(transport, memory[transport.hosts[rank]], request["question"])
            else:
                verdicts[rank] = exam.lose_the_last(transport, **request)
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
            expected = {"exits": 7, "is killed": -9, exam.STOPS: -9}.get(request.get("departure", ""), 0)
            if not any(result["verdicts"]):
                assert result["statuses"] == [0] * (size - 1) + [expected]
            return result["verdicts"]

        try:
            yield sit
        finally:
            hall.stdin.close()
            try:
                hall.wait(timeout=60)
            except subprocess.TimeoutExpired:  # a question hangs; its workers are of the hall's own session
                os.killpg(hall.pid, signal.SIGKILL)


@pytest.fixture(params=["threads", "processes"])
def hall(request: pytest.FixtureRequest) -> Hall:
    return in_threads if request.param == "threads" else request.getfixturevalue("in_processes")


def spelled(hosts: tuple[int, ...]) -> str:
    return "".join(map(str, hosts))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("question", exam.EXAM)
def test_the_exam(hall: Hall, question: str, size: int) -> None:
    assert hall(size, question=question) == [""] * size


@pytest.mark.parametrize("hosts", LAYOUTS, ids=spelled)
@pytest.mark.parametrize("question", [*exam.EXAM, *exam.EXAM_OF_LINKS])
def test_the_exam_of_hosts_that_threads_pretend_to_be_on(question: str, hosts: tuple[int, ...]) -> None:
    assert in_threads(len(hosts), hosts, question=question) == [""] * len(hosts)


@pytest.mark.parametrize("hosts", [(0, 0, 1), (0, 1, 0, 1)], ids=spelled)
@pytest.mark.parametrize("question", [*exam.EXAM, *exam.EXAM_OF_LINKS])
def test_the_exam_of_hosts_whose_workers_were_started_apart(
    in_processes: Hall, question: str, hosts: tuple[int, ...]
) -> None:
    assert in_processes(len(hosts), hosts=hosts, question=question) == [""] * len(hosts)


@pytest.mark.parametrize("hosts", [(0, 1), (0, 1, 2)], ids=spelled)
@pytest.mark.parametrize("question", [*exam.EXAM, *exam.EXAM_OF_LINKS])
def test_the_exam_of_workers_whose_tensors_are_staged(
    in_processes: Hall, question: str, hosts: tuple[int, ...]
) -> None:
    """Each with a memory of its own, as on GPUs; here it is the CPU's."""
    assert in_processes(len(hosts), hosts=hosts, question=question, staged=True) == [""] * len(hosts)


@pytest.mark.parametrize("departure", exam.DEPARTURES)
@pytest.mark.parametrize("verb", [*exam.VERBS, *exam.VERBS_OF_LINKS])
def test_a_worker_with_staged_tensors_is_missed_at_once(in_processes: Hall, verb: str, departure: str) -> None:
    asked = {"verb": verb, "departure": departure, "after": 2, "staged": True}
    assert in_processes(3, hosts=(0, 1, 2), **asked) == [""] * 3


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


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("hosts", LAYOUTS, ids=spelled)
@pytest.mark.parametrize("verb", [*exam.VERBS, *exam.VERBS_OF_LINKS])
def test_a_thread_that_leaves_its_host_is_noticed_at_once(verb: str, hosts: tuple[int, ...], after: int) -> None:
    verdicts = in_threads(len(hosts), hosts, verb=verb, departure="closes", after=after)
    assert verdicts == [""] * len(hosts)


@pytest.mark.parametrize("hosts", [(0, 0, 1), (0, 1, 1)], ids=spelled)
@pytest.mark.parametrize("departure", exam.DEPARTURES)
@pytest.mark.parametrize("verb", [*exam.VERBS, *exam.VERBS_OF_LINKS])
def test_a_worker_lost_on_another_host_is_noticed_at_once(
    in_processes: Hall, verb: str, departure: str, hosts: tuple[int, ...]
) -> None:
    assert in_processes(3, hosts=hosts, verb=verb, departure=departure, after=2) == [""] * 3


@pytest.mark.parametrize("hosts", [(0, 1), (0, 1, 1)], ids=spelled)
@pytest.mark.parametrize("verb", [*exam.VERBS, *exam.VERBS_OF_LINKS])
def test_a_worker_that_stops_counts_as_lost_after_the_timeout(
    in_processes: Hall, verb: str, hosts: tuple[int, ...]
) -> None:
    verdicts = in_processes(len(hosts), hosts=hosts, verb=verb, departure=exam.STOPS, after=2, timeout=1.0)
    assert verdicts == [""] * len(hosts)


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
