"""Bootstrap intervals, by what must hold for any samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.bench.intervals import Interval, draws_of, median_of, noise_of, ratio_of, regret_of

seconds = st.floats(1e-6, 1e3)
samples = st.lists(seconds, min_size=1, max_size=15)
paired = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=15)


@given(samples)
def test_a_median_lies_in_its_interval_and_that_between_the_samples(values: list[float]) -> None:
    found = median_of(values)
    assert found.value == np.median(values)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


@given(samples, st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_unit_of_time_does_not_matter(values: list[float], scale: float) -> None:
    found, scaled = median_of(values), median_of([value * scale for value in values])
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (found.value * scale, found.low * scale, found.high * scale)
    )


@given(seconds, st.integers(1, 15))
def test_rounds_that_agree_leave_no_doubt(value: float, rounds: int) -> None:
    assert median_of([value] * rounds) == Interval(value, value, value)


@given(samples)
def test_a_contender_is_as_fast_as_itself(values: list[float]) -> None:
    assert ratio_of(values, values) == Interval(1.0, 1.0, 1.0)


@given(samples, st.sampled_from([0.5, 2.0, 4.0]))
def test_what_hits_both_of_a_round_does_not_blur_their_ratio(values: list[float], factor: float) -> None:
    """However the machine's speed changes from round to round: they are drawn together."""
    found = ratio_of([value * factor for value in values], values)
    assert (found.value, found.low, found.high) == pytest.approx((factor, factor, factor))


@given(paired)
def test_a_ratio_lies_in_its_interval(values: list[tuple[float, float]]) -> None:
    a, b = zip(*values, strict=True)
    found = ratio_of(a, b)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(np.median(a) / np.median(b))


@given(paired)
def test_the_same_samples_have_the_same_interval(values: list[tuple[float, float]]) -> None:
    a, b = zip(*values, strict=True)
    assert ratio_of(a, b) == ratio_of(a, b)
    assert (draws_of(len(values)) == draws_of(len(values))).all()


@given(paired)
def test_noise_is_the_same_whichever_copy_was_the_first(values: list[tuple[float, float]]) -> None:
    a, b = zip(*values, strict=True)
    assert noise_of(ratio_of(a, b)) >= 0
    assert noise_of(Interval(1.0, 0.8, 1.1)) == pytest.approx(noise_of(Interval(1.0, 1 / 1.1, 1 / 0.8)))


def test_an_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    """25 rounds of a skewed time whose median is 1; nine of ten, give or take 5 %."""
    generator = np.random.default_rng(1)
    intervals = [median_of(generator.lognormal(0.0, 0.3, 25).tolist()) for _ in range(400)]
    covered = sum(one.low <= 1.0 <= one.high for one in intervals) / len(intervals)
    assert 0.85 <= covered <= 0.95


@given(seconds, seconds)
def test_regret_is_nothing_for_the_best_and_grows_with_the_pick(pick: float, best: float) -> None:
    assert regret_of(best, best) == 0.0
    assert (regret_of(pick, best) > 0) == (pick > best) or pick / best == 1.0
