"""Where workers meet: nobody waits for what cannot come, and nothing of an earlier run is read."""

import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from commands import free_port
from samestep.errors import PlanRefused, Refused, TrainingFailed
from samestep.launch.environment import World
from samestep.launch.hosts.membership import (
    OPEN,
    Membership,
    assemble,
    check_alike,
    connect,
    look_up,
    own_facts,
    stores,
    wait_for_door,
)
from samestep.launch.request.request import Request

REQUEST = Request.of(run="r")


def world(**fields: object) -> World:
    given = {"launcher": "srun", "rank": 0, "size": 2, "address": "127.0.0.1", "port": free_port()}
    return World(**{**given, "run": "7.0", "epoch": 0, "joins_store": False, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("launcher", ["srun", "Kubernetes"])
def test_a_host_that_has_no_address_is_refused_with_its_name(launcher: str) -> None:
    """A new pod's name gets its time until the deadline, which is over here."""
    with pytest.raises(PlanRefused, match=r"worker 1 on host .* does not know the host no such host \(MASTER_ADDR\)"):
        look_up(world(launcher=launcher, rank=1, address="no such host"), time.monotonic())


def test_a_worker_that_finds_nobody_says_where_it_looked() -> None:
    place = world(rank=1)
    with pytest.raises(TrainingFailed, match=rf"worker 1 .* found nobody at 127.0.0.1:{place.port} within 0.1 s"):
        connect(place, 0.1)


def test_a_worker_waits_until_worker_0_listens() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        waiting = threading.Thread(
            target=wait_for_door,
            args=(socket.AF_INET, socket.SOCK_STREAM, door.getsockname(), time.monotonic() + 60),
        )
        waiting.start()
        door.listen()
        waiting.join()


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PlanRefused, match=r"worker 0 cannot listen at .* name an address of worker 0's host"):
            connect(world(port=other.getsockname()[1]), 1)


def test_what_an_earlier_start_left_in_the_store_is_not_read() -> None:
    """torchrun's store outlives its workers. Worker 1 of the first start has come, the one of the second has not."""
    place = world(launcher="torchrun", joins_store=True)
    server = stores.TCPStore(place.address, place.port, is_master=True, wait_for_workers=False)
    for call in range(10):
        server.set(f"samestep 7.0 0 {call}/facts 1", json.dumps(own_facts(REQUEST)))
    with pytest.raises(TrainingFailed, match=r"has waited 0\.3 s .* for worker 1 of 2"):
        assemble(replace(place, epoch=1), REQUEST, 0.3)


def test_a_second_call_in_one_process_meets_at_the_same_store_and_begins_anew() -> None:
    """Worker 0 holds the store; what its first call wrote there is not what its second call reads."""
    place = world(size=1)
    first, second = assemble(place, REQUEST, 5), assemble(place, REQUEST.but(run="s"), 5)
    assert (first.facts[0]["run"], second.facts[0]["run"]) == ("r", "s")
    assert OPEN[place] is connect(place, 5)


def workers_with(**facts: object) -> Membership:
    """Two workers, the second with other facts."""
    first = own_facts(REQUEST)
    return Membership(world(), None, [first, {**first, "name": "b", **facts}], 1.0)


def test_kernels_count_by_their_bits_and_not_by_the_name_of_their_instructions() -> None:
    other = {**own_facts(REQUEST)["kernels"], "products": "0", "sums": "0"}
    check_alike(workers_with(**{"instruction set": "AVX2"}))
    differing = workers_with(**{"instruction set": "AVX2", "kernels": other})
    with pytest.raises(
        Refused, match=r"worker 1 on host b \(AVX2\) gives other bits than worker 0 .* in products, sums:"
    ):
        check_alike(differing)
