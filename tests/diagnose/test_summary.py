from samestep.diagnose.summary import trace_summary
from samestep.plan.prediction import PARTS, Prediction
from samestep.schedule.actions import Agree, Backward, Forward, Load
from traces import trace

WORKERS = [
    trace(0, [(Load(), 0.010, 0.0), (Forward(0), 0.090, 0.0), (Agree(), 0.110, 0.102)], steps=5),
    trace(1, [(Load(), 0.010, 0.0), (Backward(1), 0.190, 0.0), (Agree(), 0.010, 0.002)], steps=5),
]
PREDICTION = Prediction(
    seconds=0.2, low=0.19, high=0.205, parts=dict.fromkeys(PARTS, 0.0),
    actions=[{"Forward": 0.1}, {"Backward": 0.152, "Agree": 0.008}],
)  # fmt: skip


def test_measured_beside_predicted() -> None:
    assert trace_summary(WORKERS, PREDICTION).splitlines() == [
        "5 steps, 210 ms each (median)",
        "predicted 200 ms per step, measured 210 ms: -4.8%, outside the interval 190 to 205",
        "busy, ms  predicted  measured  ratio",
        "Backward        152       190   1.25",
        "Forward         100        90   0.90",
        "Load              0        20      -",
        "Agree             8        16   2.00",
        "the slowest is worker 1: busy 208 ms, 99% of the step",
        "worker 0 waits 100 ms for worker 1 (48%)",
    ]


def test_without_a_prediction_there_is_one_column() -> None:
    lines = trace_summary(WORKERS).splitlines()
    assert lines[1:3] == ["busy, ms  measured", "Backward       190"]


def test_one_worker_waits_for_nobody() -> None:
    assert trace_summary([trace(0, [(Forward(0), 1.0, 0.0)])]).splitlines() == [
        "1 steps, 1000 ms each (median)",
        "busy, ms  measured",
        "Forward      1000",
    ]
