"""The file for Perfetto keeps the rules of its format, of real runs on every kind of plan and of any times."""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.job.report import Report
from samestep.schedule.actions import Agree, Forward, Receive, Reduce, Send, SendGradient, SliceForward
from samestep.trace.chrome import chrome_trace, name_of
from samestep.trace.timesheet import Event
from samestep.trace.worker_trace import WorkerTrace
from traces import trace

Slices = list[dict[str, Any]]
NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid", "args"},
    "M": {"name", "pid", "args"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
    "i": {"name", "s", "ts", "pid", "tid"},
}
TICK = 1e-6  # microseconds: what a number of the file may be off


def of(found: dict[str, Any], phase: str) -> Slices:
    return [event for event in found["traceEvents"] if event["ph"] == phase]


def check_format(found: dict[str, Any]) -> dict[tuple[int, int], Slices]:
    """Hold what the format asks for; the slices of every thread."""
    found = json.loads(json.dumps(found, allow_nan=False))
    for event in found["traceEvents"]:
        assert set(event) >= NEEDED[event["ph"]]
        assert event.get("ts", 0.0) >= 0.0
    threads: dict[tuple[int, int], Slices] = defaultdict(list)
    for event in of(found, "X"):
        assert event["cat"] in ("compute", "communicate", "wait")
        threads[event["pid"], event["tid"]].append(event)
    for slices in threads.values():
        for a, b in itertools.pairwise(slices):
            assert a["ts"] + a["dur"] <= b["ts"] + TICK, "they follow one another and do not overlap"
    named = {(event["pid"], event["tid"]) for event in of(found, "M") if event["name"] == "thread_name"}
    assert named >= set(threads)
    assert {event["pid"] for event in of(found, "M") if event["name"] == "process_name"} == {pid for pid, _ in named}
    return threads


def around(slices: Slices, ts: float) -> dict[str, Any]:
    """The slice to which an arrow at this time belongs: the last that has begun."""
    inside = [one for one in slices if one["ts"] <= ts <= one["ts"] + one["dur"]]
    assert inside, "an arrow begins and ends in a slice"
    return inside[-1]


def check_arrows(found: dict[str, Any], threads: dict[tuple[int, int], Slices]) -> int:
    """Every arrow goes from a send to its receive and forward in time; how many there are."""
    begins = {event["id"]: event for event in of(found, "s")}
    ends = {event["id"]: event for event in of(found, "f")}
    assert begins.keys() == ends.keys()
    for number, begin in begins.items():
        end = ends[number]
        send = around(threads[begin["pid"], begin["tid"]], begin["ts"])
        receive = around(threads[end["pid"], end["tid"]], end["ts"])
        assert begin["ts"] <= end["ts"]
        what = send["name"].split()[1]
        assert (send["name"], send["cat"]) == (f"Send {what} to {end['tid']}", "communicate")
        assert (receive["name"], receive["cat"]) == (f"Receive {what} from {begin['tid']}", "communicate")
        for field in ("step", "shard", "stage"):
            assert send["args"][field] == receive["args"][field]
    return len(begins)


PLANS: list[dict[str, Any]] = [
    {"workers": 1},
    {"workers": 2, "assign": [5, 3]},
    {"workers": 2, "plan": "pipeline"},
    {"workers": 2, "plan": "hybrid"},
    {"workers": 3, "hosts": (2, 1), "transport": "threads"},
]


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_a_real_run(train: Callable[..., Report], options: dict[str, Any]) -> None:
    report = train("mlp", trace_steps=3, **options)
    assert [trace.rank for trace in report.traces] == list(range(options["workers"]))
    found = chrome_trace(report.traces)
    threads = check_format(found)
    hosts = options.get("hosts", (options["workers"],))
    where = [(host, rank) for rank, host in enumerate(h for h, count in enumerate(hosts) for _ in range(count))]
    assert sorted(threads) == sorted(where)
    sends = [one for slices in threads.values() for one in slices if one["name"].startswith("Send")]
    assert check_arrows(found, threads) == len(sends)
    assert bool(sends) == (options.get("plan") == "pipeline")
    assert [mark["name"] for mark in of(found, "i")] == ["step 2", "step 3", "step 4"]
    updates = [one for slices in threads.values() for one in slices if one["name"] == "Update"]
    assert len(updates) == 3 * options["workers"]
    backwards = [one["args"] for slices in threads.values() for one in slices if one["name"].startswith("B")]
    assert {shard for said in backwards for shard in said.get("shards", [said.get("shard")])} == set(range(8))


def test_without_being_asked_nobody_tells(train: Callable[..., Report]) -> None:
    assert train("mlp", workers=2).traces == []


def test_waiting_is_a_slice_of_its_own() -> None:
    found = chrome_trace([trace(0, [(Forward(0, 2), 2e-3, 0.0), (Agree(), 5e-3, 4e-3), (Reduce(), 1e-3, 0.0)])])
    [(_, slices)] = check_format(found).items()
    assert [(one["name"], one["cat"], one["ts"], one["dur"]) for one in slices] == [
        ("F0 seg 2", "compute", 0.0, 2000.0),
        ("wait", "wait", 2000.0, 4000.0),
        ("Agree", "communicate", 6000.0, 1000.0),
        ("Reduce", "communicate", 7000.0, 1000.0),
    ]


def test_names_are_those_of_the_drawing() -> None:
    actions = [SliceForward(range(4), 1), Send(3, 0, 1), SendGradient(3, 0, 0)]
    assert [name_of(action) for action in actions] == ["F0-3 seg 1", "Send F3 to 1", "Send B3 to 0"]


lengths = st.floats(0, 10).map(lambda seconds: round(seconds, 3))
done = st.tuples(lengths, st.floats(0, 1))


@given(st.lists(st.tuples(st.integers(0, 3), done, done), min_size=1, max_size=12), st.floats(0, 1e5))
def test_any_times_keep_the_rules(
    messages: list[tuple[int, tuple[float, float], tuple[float, float]]], at: float
) -> None:
    """Worker 0 sends, worker 1 receives each when it is there; a receive waits some part of its time."""
    sends, receives = [], []
    clocks = [at, at]
    for number, (step, (sending, _), (receiving, part)) in enumerate(messages):
        begin, clocks[0] = clocks[0], clocks[0] + sending
        sends.append(Event(step, Send(number, 0, 1), begin, clocks[0], 0.0))
        begin, clocks[1] = clocks[1], max(clocks[1] + receiving, clocks[0])
        receives.append(Event(step, Receive(number, 0, 0), begin, clocks[1], part * (clocks[1] - begin)))
    found = chrome_trace([WorkerTrace(0, 0, tuple(sends)), WorkerTrace(1, 1, tuple(receives))])
    check_format(found)
    begins, ends = of(found, "s"), of(found, "f")
    assert len(begins) == len(ends) == len(messages)
    assert all(a["ts"] <= b["ts"] + 1e-3 for a, b in zip(begins, ends, strict=True)), "to the nanosecond"


def test_a_receive_whose_send_is_forgotten_has_no_arrow() -> None:
    found = chrome_trace([trace(0, [(Receive(0, 0, 1), 1.0, 0.5)])])
    assert not of(found, "s")
    assert not of(found, "f")
