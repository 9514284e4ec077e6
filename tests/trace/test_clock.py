"""Clocks of hosts: the estimate is never further off than it says."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.trace.clock import Stamps, offsets, stamped
from samestep.transport.thread_hosts import ThreadHosts

delays = st.floats(0, 1e-2)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[int], list[float], list[Stamps]]:
    """Hosts of workers, clocks of hosts, and what workers note in rounds whose ends come after all beginnings."""
    hosts = [0, *sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)))]
    hosts = [sorted(set(hosts)).index(host) for host in hosts]
    clocks = [0.0, *(draw(st.floats(-1e4, 1e4)) for _ in range(max(hosts)))]
    stamps: list[list[tuple[float, float]]] = [[] for _ in hosts]
    at = 100.0
    for _ in range(draw(st.integers(1, 6))):
        begins = [at + draw(delays) for _ in hosts]
        ends = [max(begins) + draw(delays) for _ in hosts]
        at = max(ends)
        for own, begin, end, host in zip(stamps, begins, ends, hosts, strict=True):
            own.append((begin + clocks[host], end + clocks[host]))
    return hosts, clocks, list(stamps)


@given(rounds())
def test_the_true_offset_lies_within_the_error(drawn: tuple[list[int], list[float], list[Stamps]]) -> None:
    hosts, clocks, stamps = drawn
    for found, true in zip(offsets(stamps, hosts), clocks, strict=True):
        assert abs(found.seconds - true) <= found.error + 1e-9


@given(rounds())
def test_the_error_is_at_most_half_the_shortest_round_trip(drawn: tuple[list[int], list[float], list[Stamps]]) -> None:
    """A round trip between two workers: both of their rounds' lengths, which hold the way there and back."""
    hosts, _, stamps = drawn
    for host, found in list(enumerate(offsets(stamps, hosts)))[1:]:
        ours = [own for own, at in zip(stamps, hosts, strict=True) if at == 0]
        theirs = [own for own, at in zip(stamps, hosts, strict=True) if at == host]
        trips = [
            (a1 - a0) + (b1 - b0)
            for a in ours
            for b in theirs
            for (a0, a1), (b0, b1) in zip(a, b, strict=True)
        ]  # fmt: skip
        assert found.error <= min(trips) / 2 + 1e-9


def test_by_hand() -> None:
    """Clock of host 1 is 50 s ahead. Both begin at 0; records take 1 s there and 3 s back."""
    [_, found] = offsets([[(0.0, 3.0)], [(50.0, 51.0)]], [0, 1])
    assert (found.seconds, found.error) == (49.0, 2.0)


@pytest.mark.parametrize("hosts", [(0, 1), (0, 0, 1), (0, 1, 1, 2)])
def test_workers_find_the_offsets_of_clocks_that_were_put_forward(hosts: tuple[int, ...]) -> None:
    """Over the real exchange of pretended hosts; all processes here have one true clock."""
    ahead = {0: 0.0, 1: 1234.5, 2: -77.0}
    fabric = ThreadHosts(hosts)
    found: dict[int, list[Stamps]] = {}

    def work(rank: int) -> None:
        transport = fabric.endpoint(rank)
        try:
            clock = lambda: time.perf_counter() + ahead[hosts[rank]]  # noqa: E731
            found[rank] = stamped(transport.exchange, 8, clock)
        finally:
            transport.close()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[rank] == found[0] for rank in range(len(hosts)))
    for host, offset in enumerate(offsets(found[0], hosts)):
        assert abs(offset.seconds - ahead[host]) <= offset.error + 1e-9
        assert offset.error < 60.0
