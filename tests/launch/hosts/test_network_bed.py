"""The test hosts themselves: their links carry, limit and break; nothing of them stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import Hosts, HostsUnavailable, cpu_groups, remove_leftovers, run

SEND = """
import socket, sys, time
address, size = sys.argv[1], int(sys.argv[2])
if len(sys.argv) == 4:
    end = socket.create_server((address, 5000))
    print("up", flush=True)
    end, _ = end.accept()
    began, got = time.monotonic(), 0
    while got < size:
        got += len(end.recv(1 << 20))
    print(got / (time.monotonic() - began))
else:
    socket.create_connection((address, 5000)).sendall(bytes(size))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    try:
        with Hosts(2, rate="100mbit") as found:
            yield found
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


def transfer(hosts: Hosts, size: int) -> float:
    """Bytes per second from host 1 to host 0."""
    command = [sys.executable, "-c", SEND, hosts[0].address, str(size)]
    receiver = hosts[0].popen([*command, "receive"], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "up\n"
    assert hosts[1].popen(command).wait(120) == 0
    rate = float(receiver.stdout.read())
    receiver.stdout.close()
    assert receiver.wait(120) == 0
    return rate


def test_a_link_carries_what_it_says_and_counts_it(hosts: Hosts) -> None:
    before = hosts[1].sent()
    rate = transfer(hosts, 10_000_000)
    assert rate < 1.2 * 12.5e6, "less on a busy machine"
    assert 10_000_000 < hosts[1].sent() - before < 11_500_000


def test_a_link_that_is_down_carries_nothing_until_it_is_up(hosts: Hosts) -> None:
    reach = [
        "timeout",
        "60",
        sys.executable,
        "-c",
        "import socket, sys; socket.create_connection((sys.argv[1], 9), 2)",
    ]

    def outcome() -> str:
        process = hosts[1].popen([*reach, hosts[0].address], stderr=subprocess.PIPE, text=True)
        return str(process.communicate()[1]).strip().splitlines()[-1]

    assert "refused" in outcome(), "somebody is there, and nobody listens"
    hosts[0].link_down()
    assert "refused" not in outcome()
    hosts[0].link_up()
    assert "refused" in outcome()


def test_a_slowed_process_gets_its_share(hosts: Hosts) -> None:
    try:
        cpu_groups()
    except HostsUnavailable as reason:
        pytest.skip(str(reason))
    spend = "import time; a = time.process_time()\nwhile time.process_time() - a < 0.3: pass\nprint(time.monotonic())"
    began = "import time; print(time.monotonic()); " + spend
    process = hosts[0].popen([sys.executable, "-c", began], cpu=0.25, stdout=subprocess.PIPE, text=True)
    first, last = map(float, process.communicate()[0].split())
    assert last - first > 0.8, "0.3 s of work at a quarter of a core"


def test_nothing_stays(hosts: Hosts) -> None:
    with Hosts(1) as one:
        process = one[0].popen(["sleep", "1000"])
        assert one.name in run("ip", "netns", "list")
    assert process.wait(60) == -signal.SIGKILL
    assert one.name not in run("ip", "netns", "list")


def test_what_a_killed_maker_leaves_is_removed(hosts: Hosts) -> None:
    make = "import os, signal\nfrom hosts import Hosts\nh = Hosts(1).__enter__()\nprint(h.name, flush=True)\n"
    make += "h[0].popen(['sleep', '1000'], stdout=-3)\nos.kill(os.getpid(), signal.SIGKILL)"
    folder = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", make], env=os.environ | {"PYTHONPATH": folder}, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    name = done.stdout.strip()
    assert name in run("ip", "netns", "list")
    remove_leftovers()
    assert name not in run("ip", "netns", "list")
