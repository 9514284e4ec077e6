"""A trace of two hosts with a real link between them. Both have this machine's clock, and do not know it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from by_hand import ByHand
from hosts import Hosts, HostsUnavailable

JOB = f"{Path(__file__).parents[1] / 'jobs' / 'grids.py'}:mlp"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    try:
        with Hosts(2, rate="100mbit") as found:
            yield found
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


def test_two_hosts_in_one_trace(tmp_path: Path, hosts: Hosts) -> None:
    run = ByHand(tmp_path, (1, 1), hosts)
    run.start(JOB, "--plan", "pipeline", "--steps", 5, "--trace", tmp_path / "t.json", "--trace-steps", 3)
    ended = run.end()
    assert [one.code for one in ended.values()] == [0, 0], ended
    assert "clocks of the hosts agree to within" in ended[0].err
    assert ended[1].err == ""
    found = json.loads((tmp_path / "t.json").read_text())
    events, error = found["traceEvents"], found["otherData"]["clock error, seconds"]
    assert 0 < error < 5, "seconds; far less than this unless the machine is busy"
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} == {(0, 0), (1, 1)}
    arrows = [(a, b) for a in events for b in events if (a["ph"], b["ph"]) == ("s", "f") and a["id"] == b["id"]]
    assert len(arrows) == sum(e["ph"] == "X" and e["name"].startswith("Send") for e in events) > 0
    assert all(sent["ts"] <= taken["ts"] + 1e6 * error for sent, taken in arrows)
