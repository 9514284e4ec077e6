import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import save

from samestep.job.report import Report, WorkerTime
from samestep.plan.prediction import PARTS, Prediction

REPORT = Report(
    digest="ab12",
    losses=[2.5, 1.25],
    seconds_per_step=None,
    workers=2,
    assign=(3, 1),
    shards=4,
    numerics="seed=0 shards=4",
    plan="assign = [3, 1]\n",
    metrics={"accuracy": 0.5},
    steps=2,
    rows_per_second=None,
    times=[WorkerTime(1.0, 0.5, 0.25), WorkerTime(0.9, 0.4, 0.1)],
)

PROMISED = {"digest", "losses", "seconds_per_step", "workers", "assign", "shards", "numerics", "plan", "metrics"}


def in_memory(content: bytes) -> int:
    handle = os.memfd_create("weights")
    os.write(handle, content)
    return handle


def test_the_last_line_holds_what_was_promised_as_one_line_of_json() -> None:
    line = json.dumps(REPORT.as_json())
    assert "\n" not in line
    fields = json.loads(line)
    assert set(fields) >= PROMISED
    assert fields["assign"] == [3, 1]
    assert fields["seconds_per_step"] is None
    assert fields["times"][1] == {"compute": 0.9, "communicate": 0.4, "wait": 0.1, "moved": 0, "wired": 0, "framed": 0}


def test_a_prediction_is_graded() -> None:
    prediction = Prediction(0.25, 0.2, 0.3, dict.fromkeys(PARTS, 0.0), [])
    graded = dataclasses.replace(REPORT, seconds_per_step=0.2, prediction=prediction).as_json()
    assert (graded["predicted_seconds_per_step"], graded["prediction_error"]) == (0.25, pytest.approx(0.25))
    unmeasured = dataclasses.replace(REPORT, prediction=prediction).as_json()
    assert (unmeasured["predicted_seconds_per_step"], unmeasured["prediction_error"]) == (0.25, None)
    unasked = REPORT.as_json()
    assert (unasked["predicted_seconds_per_step"], unasked["prediction_error"]) == (None, None)


def test_the_weights_come_home_and_may_be_read_again() -> None:
    weights = {"0.weight": torch.randn(300, 7), "0.bias": torch.randn(7).bfloat16(), "count": torch.tensor(3)}
    report = dataclasses.replace(REPORT, weights_file=in_memory(save(weights)))
    for _ in range(2):
        found = report.state_dict()
        assert set(found) == set(weights)
        for name, value in weights.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)


def test_a_report_closes_its_file() -> None:
    handle = in_memory(b"")
    report = dataclasses.replace(REPORT, weights_file=handle)
    del report
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_without_weights_the_way_out_is_said() -> None:
    with pytest.raises(RuntimeError, match="--save FILE"):
        REPORT.state_dict()


def test_a_report_that_ends_with_the_interpreter_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules have lost their names by then."""
    handle = in_memory(b"")
    report = dataclasses.replace(REPORT, weights_file=handle)
    monkeypatch.setattr("samestep.job.report.os", None)
    report.__del__()
    report.__del__()  # closed already
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
    object.__setattr__(report, "weights_file", None)  # the number may be another file's by now
