"""What watchers of several hosts make of one another's words: no processes."""

import json
import time
from dataclasses import asdict
from typing import Any

import pytest

from samestep.diagnose.stacks import Frame
from samestep.diagnose.stall import OwnWork, Process, WorkerView
from samestep.launch.hosts import host_watcher
from samestep.launch.hosts.host_watcher import SILENT, STARTUP, Relay
from samestep.system.json_values import value_from

PERIOD = 0.5
SETUP = {
    "host": 1, "hosts": [0, 1], "names": ["worker 0 on host a", "worker 1 on host b"], "host_names": ["a", "b"],
    "worker_keeps_store": False,
}  # fmt: skip
SEEN = WorkerView(
    0, "worker 0 on host a", 0, "a", peer=1, waits=3.0, still=3.0, process=Process(7, "S", frame=Frame("f.py", 3, "g")),
    loaders=(Process(8, "T"),), pace=OwnWork(0.1, 0.2),
)  # fmt: skip


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Relay:
    """Without the thread that reports to the store."""
    monkeypatch.setattr(Relay, "_run", lambda self: None)
    return Relay(SETUP, PERIOD)


def hear(relay: Relay, ago: float) -> None:
    word = {"word": 1, "workers": [asdict(SEEN)]}
    relay._heard[0] = time.monotonic() - ago, json.dumps(word)


def test_a_worker_travels_as_text() -> None:
    found: Any = json.loads(json.dumps(asdict(SEEN)))
    assert value_from(WorkerView, found) == SEEN
    assert value_from(WorkerView, json.loads(json.dumps(asdict(WorkerView(3, "w"))))) == WorkerView(3, "w")


def test_a_host_that_has_not_come_yet_is_not_silent(relay: Relay) -> None:
    relay._began -= STARTUP - 5
    assert relay.others({})[0].silent == 0
    assert not relay.reports()
    relay._began -= 15
    assert relay.others({})[0].silent > 9
    assert relay.reports()


def test_what_was_heard_grows_old_and_a_host_that_was_heard_can_fall_silent(relay: Relay) -> None:
    hear(relay, 1.0)
    found = relay.others({})[0]
    assert (found.silent, found.host_name) == (0, "a")
    assert 4.0 <= found.waits < 5.0
    hear(relay, SILENT * PERIOD + 1.0)
    assert relay.others({})[0].silent > SILENT * PERIOD
    assert relay.reports()


def test_worker_0_is_to_blame_where_its_host_answers_and_its_store_does_not(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear(relay, 60.0)
    assert not relay.others({})[0].keeps_store  # a launcher keeps it
    relay._setup = {**SETUP, "worker_keeps_store": True, "address": "127.0.0.1", "port": 1}
    assert not relay.others({})[0].keeps_store  # nobody there

    class Answers:
        def close(self) -> None:
            pass

    monkeypatch.setattr(host_watcher.socket, "create_connection", lambda place, timeout: Answers())
    assert relay.others({})[0].keeps_store
