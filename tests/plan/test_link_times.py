"""What verbs take: the line through measured points, and measuring with the verbs of a transport."""

import json
import threading
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.plan.link_times import Curve, LinkTimes, fitted
from samestep.plan.machine import Link
from samestep.system.json_values import value_from
from samestep.transport.threads import ThreadFabric
from samestep.transport.timing import measure_links

SIZES = (64, 4096, 1 << 20, 1 << 24)


@given(latency=st.floats(1e-7, 1e-2), bandwidth=st.floats(1e5, 1e11))
def test_points_on_a_line_give_the_line(latency: float, bandwidth: float) -> None:
    link = fitted([(n, latency + n / bandwidth) for n in SIZES])
    assert [link.latency + n / link.bandwidth for n in SIZES] == pytest.approx(
        [latency + n / bandwidth for n in SIZES], rel=1e-4
    )


@given(times=st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=4))
def test_any_points_give_a_link(times: list[float]) -> None:
    link = fitted(list(zip(SIZES, times, strict=False)))
    assert isinstance(link, Link)  # which refuses what is no latency and no bandwidth


def test_times_travel_as_json() -> None:
    curve = Curve(((64, 1e-5), (4096, 2e-5)), 1e-10)
    times = LinkTimes(1e-5, 2e-5, curve, curve)
    assert value_from(LinkTimes, json.loads(json.dumps(asdict(times)))) == times


@pytest.mark.parametrize("pair", [(0, 1), (2, 0)])
def test_all_workers_learn_the_same_times(pair: tuple[int, int]) -> None:
    fabric, sizes = ThreadFabric(3), (64, 4096)
    found: dict[int, LinkTimes] = {}

    def work(rank: int) -> None:
        transport = fabric.endpoint(rank)
        try:
            found[rank] = measure_links(transport, pair, sizes, patience=0.001)
        finally:
            transport.close()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]
    for curve in (found[0].send, found[0].move):
        assert [nbytes for nbytes, _ in curve.points] == list(sizes)
        assert all(seconds > 0 for _, seconds in curve.points)
    assert min(found[0].exchange, found[0].fence) > 0
