"""How much of its own work a step takes a worker, from looks at it: no processes."""

from collections.abc import Iterator

from samestep.diagnose.stall import OwnWork
from samestep.launch.run.stall_watch import History, WorkerSample, own_work
from samestep.system.procfs import Vital

PATIENCE, PERIOD = 3.0, 0.25


def looks(
    steps: int, own: float, last: float, waits: float = 0.0, works: float = 0.0
) -> Iterator[tuple[WorkerSample, float]]:
    """At `steps` steps of `own` seconds, then at one more until it has waited and worked as long as given.

    last: seconds that each of the last six of the whole steps takes. Yields what is seen, and since when the step runs.
    """
    ends = [0.0]
    for number in range(steps):
        ends.append(ends[-1] + (last if number >= steps - 6 else own))
    at = 0.0
    while at < ends[-1] + waits + works:
        done = max(number for number, end in enumerate(ends) if end <= at)
        waited = min(max(at - ends[-1], 0.0), waits)
        yield WorkerSample(at, Vital("S"), done, ends[done], waited), at - ends[done]
        at += PERIOD


def seen(*found: tuple[WorkerSample, float]) -> OwnWork | None:
    history = History()
    for sample, _ in found:
        history.add(sample, PATIENCE)
    return own_work(history, found[-1][1], PATIENCE)


def test_a_worker_that_waits_for_long_is_not_slow() -> None:
    """The one it waits for pauses for longer than looks are kept."""
    for waits in (1.0, 4.0, 40.0):
        found = seen(*looks(20, 0.5, 0.5, waits=waits))
        assert found is not None
        assert found.ratio < 1.5


def test_a_worker_whose_step_takes_long_by_itself_is_slow_from_the_patience_on() -> None:
    for works, is_slow in ((2.0, False), (4.0, True), (40.0, True)):
        found = seen(*looks(20, 0.5, 0.5, waits=2.0, works=works))
        assert found is not None
        assert (found.ratio > 5) == is_slow


def test_a_worker_whose_last_steps_took_longer_is_slow() -> None:
    found = seen(*looks(30, 0.1, 1.0))
    assert found is not None
    assert 5 < found.ratio < 11


def test_a_pace_is_not_known_from_the_first_steps() -> None:
    assert seen(*looks(4, 1.0, 1.0)) is None
