import dataclasses
import io
from typing import Any

import pytest

from samestep.job.report import Report, WorkerTime
from samestep.launch.failure import Event
from samestep.launch.run import progress
from samestep.launch.run.outcome import Outcome
from samestep.launch.run.progress import Progress, metrics_text, summary
from samestep.plan.prediction import PARTS, Prediction

PLAN: Event = {
    "event": "plan",
    "workers": 2,
    "assign": [5, 3],
    "shards": 8,
    "threads": 1,
    "transport": "processes",
    "hosts": [2],
    "numerics": "seed=0 shards=8",
    "plan": "",
    "first_step": 0,
    "num_steps": 40,
    "batch_size": 64,
}
UP: list[Event] = [{"event": "up", "rank": rank, "pid": 1, "threads": 1} for rank in (1, 0)]


def steps(first: int, count: int) -> Event:
    return {"event": "steps", "steps": [[first + i, 2.0 - 0.125 * (first + i), 0.01] for i in range(count)]}


def shown(*events: Event, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    watcher, outcome = Progress(stream), Outcome()
    for event in events:
        outcome.take(event, [])
        watcher.see(event, outcome)
    watcher.close()
    return stream.getvalue()


def test_the_header_says_who_computes_what_and_with_which_numbers() -> None:
    assert shown(PLAN) == (
        "2 workers (processes), 1 thread each, shards 5+3, 40 steps of 64 rows\nnumerics: seed=0 shards=8\n"
    )
    one = shown({**PLAN, "workers": 1, "assign": [8], "threads": 2, "transport": "threads"})
    assert one.startswith("1 worker (threads), 2 threads each, shards 8, ")
    assert "going on after step 12" in shown({**PLAN, "first_step": 12}, *UP)


def test_as_many_workers_as_were_asked_for_are_up_before_it_is_said() -> None:
    assert "up" not in shown(PLAN, UP[0])
    assert "2 of 2 workers up, threads per worker: 1, 1" in shown(PLAN, *UP)


def test_plain_lines_have_step_loss_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 2.0, 8.0, 9.0, 14.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    text = shown(PLAN, *UP, steps(0, 1), steps(1, 7), steps(8, 1), steps(9, 1))
    assert text.splitlines()[3:] == [
        "step 8/40  loss 1.1250  64 rows/s  32 s left",
        "step 10/40  loss 0.8750  44 rows/s  44 s left",
    ]


def test_metrics_and_warnings_have_lines_of_their_own() -> None:
    text = shown(
        PLAN,
        {"event": "metrics", "step": 10, "metrics": {"loss": 0.5, "accuracy": 0.97}},
        {"event": "warning", "text": "no gradient so far for head.bias"},
    )
    assert "after step 10: loss 0.5000, accuracy 0.9700\n" in text
    assert "warning: no gradient so far for head.bias\n" in text


def test_events_that_are_not_for_people_show_nothing() -> None:
    quiet: list[dict[str, Any]] = [
        {
            "event": "worker",
            "rank": 0,
            "compute": 1.0,
            "communicate": 1.0,
            "wait": 1.0,
            "moved": 0,
            "wired": 0,
            "framed": 0,
        },
        {"event": "failed", "rank": 0, "message": "x"},
    ]
    assert shown(*quiet) == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    """rich draws on the real stderr; the lines around it go through it."""
    shown(PLAN, *UP, steps(0, 3), {"event": "warning", "text": "look [at] this"}, steps(3, 37), stream=Terminal())
    text = capsys.readouterr().err
    assert "warning: look [at] this" in text
    assert "40/40" in text
    assert "loss -2.8750" in text


def test_closing_twice_or_before_anything_is_fine() -> None:
    watcher = Progress(io.StringIO())
    watcher.close()
    watcher.close()


REPORT = Report(
    digest="ab12",
    losses=[2.5, 1.25],
    seconds_per_step=0.0125,
    workers=2,
    assign=(3, 1),
    shards=4,
    numerics="",
    plan="",
    metrics={"loss": 0.25, "accuracy": 0.9713},
    steps=200,
    rows_per_second=5120.0,
    times=[WorkerTime(10.0, 1.5, 0.25), WorkerTime(9.0, 1.5, 1.25)],
)


def test_the_summary_has_quality_speed_and_where_the_time_went() -> None:
    assert summary(REPORT).splitlines() == [
        "done: 200 steps, loss 0.2500, accuracy 0.9713, 5,120 rows/s (12.50 ms per step)",
        "worker 0: computed 10.0 s, communicated 1.5 s, waited 0.2 s",
        "worker 1: computed 9.0 s, communicated 1.5 s, waited 1.2 s",
        "digest ab12",
    ]


def test_the_summary_grades_a_prediction() -> None:
    prediction = Prediction(0.01, 0.009, 0.012, dict.fromkeys(PARTS, 0.0), [])
    lines = summary(dataclasses.replace(REPORT, prediction=prediction)).splitlines()
    assert lines[1] == "predicted 10 ms per step, measured 12.5 ms: -20.0%, outside the interval 9 to 12"
    unmeasured = dataclasses.replace(REPORT, prediction=prediction, seconds_per_step=None)
    assert "predicted" not in summary(unmeasured)


@pytest.mark.parametrize(
    ("losses", "said"), [([2.5, 1.25], "done: 2 steps, loss 1.2500"), ([], "done: 2 steps, no steps left to do")]
)
def test_the_summary_of_a_short_run_without_held_out_data(losses: list[float], said: str) -> None:
    fields = {**vars(REPORT), "metrics": {}, "losses": losses, "steps": 2, "times": []}
    report = Report(**{**fields, "seconds_per_step": None, "rows_per_second": None})
    assert summary(report).splitlines() == [said, "digest ab12"]


def test_numbers_are_spelled_with_four_places() -> None:
    assert metrics_text({"a": 1.0, "b": float("nan")}) == "a 1.0000, b nan"
    assert metrics_text({}) == ""


def test_a_deal_says_who_is_slow_and_where_the_shards_are() -> None:
    def deal(step: int, assign: list[int], pace: list[float]) -> Event:
        return {"event": "dealt", "step": step, "assign": assign, "pace": pace}

    lines = shown(PLAN, deal(57, [7, 1], [0.01, 0.029]), deal(90, [4, 4], [0.01, 0.0101])).splitlines()[2:]
    stay = "; the numbers stay the same"
    assert lines == [
        f"step 57: a shard takes worker 1 2.9 times as long as worker 0, shards 5+3 are now 7+1{stay}",
        f"step 90: all workers take about as long for a shard, shards 7+1 are now 4+4{stay}",
    ]
    tried = shown(PLAN, deal(57, [8, 0], [0.01, 0.2]), deal(130, [7, 1], [0.01, 0.2])).splitlines()[-1]
    assert tried.startswith("step 130: worker 1 has had no shard for long and is tried again, shards 8+0 are now 7+1")


def test_the_summary_of_many_deals_is_short() -> None:
    deals = [(10 * n, (4 + n % 2, 4 - n % 2)) for n in range(1, 9)]
    lines = summary(dataclasses.replace(REPORT, deals=deals)).splitlines()
    assert "shards were reassigned 8 times; the last ones:" in lines
    assert [line.split()[2] for line in lines if line.startswith("from step")] == ["60", "70", "80"]
