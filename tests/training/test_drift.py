"""When shards are dealt anew: a real change is answered soon, noise never."""

import itertools
import random

from hypothesis import example, given
from hypothesis import strategies as st

from samestep.plan.plan import equal_shares
from samestep.planner.search.greedy_shares import greedy_shares
from samestep.training.drift import FIRST_TRIAL, LEAST, WINDOW, Drift

SHARD = 0.01  # seconds


def seconds(drift: Drift, slow: list[float], noise: random.Random, spread: float) -> list[float]:
    return [n * SHARD * s * noise.uniform(1 - spread, 1 + spread) for n, s in zip(drift.assign, slow, strict=True)]


@given(st.integers(2, 4), st.integers(0, 99), st.floats(2.5, 4.0), st.floats(0, 0.15), st.data())
def test_a_slower_worker_is_answered_within_ten_steps(
    workers: int, seed: int, times: float, spread: float, data: st.DataObject
) -> None:
    shards = workers * data.draw(st.integers(3, 8))
    drift, noise = Drift(equal_shares(shards, workers)), random.Random(seed)
    slow = [1.0] * workers
    for _ in range(2 * WINDOW):
        drift.note(seconds(drift, slow, noise, spread), shards)
        assert drift.reassignment() is None
    slow[data.draw(st.integers(0, workers - 1))] = times
    for _ in range(10):
        drift.note(seconds(drift, slow, noise, spread), shards)
        drift.reassignment()
    best = greedy_shares(shards, [lambda n, s=s: n * s for s in slow])
    takes = [max(n * s for n, s in zip(deal, slow, strict=True)) for deal in (drift.assign, best)]
    assert takes[0] <= takes[1] * 1.3, (drift.assign, best)


@given(st.integers(2, 6), st.integers(0, 999), st.floats(0, 0.2))
def test_equal_workers_are_left_alone_however_unsteady(workers: int, seed: int, spread: float) -> None:
    drift, noise = Drift(equal_shares(4 * workers, workers)), random.Random(seed)
    for _ in range(200):
        drift.note(seconds(drift, [1.0] * workers, noise, spread), 4 * workers)
        assert drift.reassignment() is None


@given(st.integers(0, 99), st.floats(0, 0.2))
def test_shares_once_right_stay(seed: int, spread: float) -> None:
    drift, noise = Drift((4, 4)), random.Random(seed)
    deals = []
    for _ in range(100):
        drift.note(seconds(drift, [1.0, 3.0], noise, spread), 8)
        deals.append(drift.reassignment())
    assert 1 <= sum(deal is not None for deal in deals) <= 2
    assert drift.assign == (6, 2)


def test_a_worker_that_is_fast_again_gets_its_shards_back() -> None:
    drift, noise = Drift((4, 4)), random.Random(0)
    for slow in ([1.0, 3.0], [1.0, 1.0]):
        for _ in range(3 * WINDOW):
            drift.note(seconds(drift, slow, noise, 0.05), 8)
            drift.reassignment()
    assert drift.assign == (4, 4)


def test_a_change_half_inside_the_window_waits() -> None:
    """Else it would be answered by half, and once more six steps later."""
    drift = Drift((4, 4))
    deals = []
    for seconds_of_both in [*[[0.04, 0.12]] * (WINDOW - 1), *[[0.12, 0.04]] * 5]:
        drift.note(seconds_of_both, 8)
        deals.append(drift.reassignment())
    assert deals == [None] * (len(deals) - 1) + [(2, 6)]


def test_steps_of_microseconds_are_not_worth_it() -> None:
    drift = Drift((4, 4))
    for _ in range(10 * WINDOW):
        drift.note([LEAST / 8, LEAST / 2], 8)
        assert drift.reassignment() is None


def test_a_short_batch_tells_nothing() -> None:
    drift = Drift((4, 4))
    for _ in range(3 * WINDOW):
        drift.note([0.04, 0.0], 4)
        assert drift.reassignment() is None


def test_one_slow_step_is_no_change() -> None:
    drift = Drift((4, 4))
    for step in range(60):
        drift.note([0.04, 0.4 if step % 20 == 10 else 0.04], 8)
        assert drift.reassignment() is None, step


@given(
    st.sampled_from([(4, 2), (8, 2), (16, 2), (16, 4)]),
    st.floats(1.5, 20.0),
    st.integers(2, 200),
    st.sampled_from([0.25, 0.5, 0.75]),
    st.integers(0, 99),
)
@example((4, 2), 3.0, 14, 0.5, 0)
@example((8, 2), 6.0, 13, 0.25, 0)
@example((8, 2), 2.0, 16, 0.25, 0)
def test_a_speed_that_goes_up_and_down_never_makes_a_run_much_slower(
    size: tuple[int, int], times: float, period: int, duty: float, seed: int
) -> None:
    """Deals that always come too late would; answered every six steps, up to 17 % of the time were lost."""
    shards, workers = size
    drift, noise, fixed = Drift(equal_shares(shards, workers)), random.Random(seed), equal_shares(shards, workers)
    spent, left_alone, turns = 0.0, 0.0, 0
    for step in range(1000):
        is_slow = step % period < period * duty
        pace = [SHARD * noise.uniform(0.95, 1.05) * (times if is_slow and w == 0 else 1.0) for w in range(workers)]
        took = [n * c for n, c in zip(drift.assign, pace, strict=True)]
        spent += max(took)
        left_alone += max(n * c for n, c in zip(fixed, pace, strict=True))
        drift.note(took, shards)
        turns += drift.reassignment() is not None
    assert spent < 1.07 * left_alone
    assert turns < 70, "always answered there would be 100 to 140"


def test_turns_are_forgotten_after_a_calm_while() -> None:
    drift = Drift((4, 4))

    def answered(times: float, steps: int) -> int:
        """After how many steps shards are dealt anew for the last time; 0: they are not."""
        last = 0
        for step in range(1, steps + 1):
            drift.note([n * SHARD * s for n, s in zip(drift.assign, (1.0, times), strict=True)], 8)
            last = step if drift.reassignment() is not None else last
        return last

    for _ in range(20):
        answered(3.0, 8)
        answered(1.0, 8)
    assert drift._window > WINDOW, "they are not answered at once any more"
    answered(1.0, 600)
    assert drift.assign == (4, 4)
    assert 0 < answered(3.0, 60) <= 10
    assert drift.assign == (6, 2)


def test_a_worker_without_shards_is_tried_again_and_ever_more_seldom() -> None:
    drift, trials = Drift((2, 2)), []
    for step in range(1500):
        drift.note([n * SHARD * s for n, s in zip(drift.assign, (1.0, 20.0 if step > 20 else 1.0), strict=True)], 4)
        dealt = drift.reassignment()
        if step > 40 and dealt == (3, 1):
            trials.append(step)
        assert step < 40 or drift.assign in ((4, 0), (3, 1))
    waits = [b - a for a, b in itertools.pairwise(trials)]
    assert len(trials) >= 4
    assert waits == [2 * FIRST_TRIAL + 4, 4 * FIRST_TRIAL + 4, 8 * FIRST_TRIAL + 4]


def test_a_worker_without_shards_that_is_fast_again_gets_its_share() -> None:
    drift = Drift((2, 2))
    for step in range(200):
        slow = 20.0 if 20 < step < 60 else 1.0
        drift.note([n * SHARD * s for n, s in zip(drift.assign, (1.0, slow), strict=True)], 4)
        drift.reassignment()
        assert step != 59 or drift.assign == (4, 0)
    assert drift.assign == (2, 2)


def test_the_first_step_of_a_deal_does_not_count() -> None:
    """Loaders are started in it, and everything is touched for the first time."""
    drift, begins, deals = Drift((4, 4)), True, []
    for step in range(60):
        slow = (1.0, 3.0 if step > 20 else 1.0)
        drift.note([9.9, 0.01] if begins else [n * SHARD * s for n, s in zip(drift.assign, slow, strict=True)], 8)
        begins = drift.reassignment() is not None
        deals += [(step, drift.assign)] * begins
        assert len(drift._steps) <= step, "the first one is not there"
    assert [assign for _, assign in deals][-1] == (6, 2)
    assert 20 < deals[0][0] <= 30
    assert deals[-1][0] <= 40
