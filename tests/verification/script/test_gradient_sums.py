"""Which pattern a sum of gradients follows: pure, on made-up steps."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from made_steps import NAMES, Made, made, some_tensors, weighted

from samestep.verification.causes import Cause
from samestep.verification.record import Key
from samestep.verification.script.gradient_sums import name_factor
from samestep.verification.script.step_records import EPS

WORKERS, MICRO, SEEDS = st.integers(2, 4), st.integers(1, 3), st.integers(0, 99)
FACTORS = st.floats(0.02, 50).filter(lambda k: abs(k - 1) > 1e-3)
SOME = st.sets(st.sampled_from(NAMES), min_size=1, max_size=len(NAMES) - 1)


@given(WORKERS, MICRO, SEEDS)
def test_right_gradients_raise_nothing(workers: int, micro: int, seed: int) -> None:
    assert made(workers, micro, seed).findings() == []


@given(WORKERS, SEEDS, st.floats(0, 0.9), st.floats(1e-9, 1e-5))
def test_noise_below_the_bound_is_never_a_finding(workers: int, seed: int, share: float, rounding: float) -> None:
    """|c - g| = share 10 d |g|, where the perturbed run is d away."""
    training = made(workers, 1, seed)
    right = training.combined()
    training.perturbed |= {Key("gradient", name): value * (1 + rounding) for name, value in right.items()}
    for rank in range(workers):
        noise = some_tensors(seed + rank + 1)
        scale = {n: share * 10 * rounding * float(right[n].norm() / noise[n].norm()) for n in NAMES}
        training.get(rank, {n: right[n] + noise[n] * scale[n] for n in NAMES})
    assert training.findings() == []


@pytest.mark.parametrize(
    ("moved", "bounds"),
    [
        ((1e-3, 1e-5, 0.0), (1e-2, 1e-4, 1e-4)),  # its own rounding, but the median of all at least
        ((1e-3, 0.0, 0.0), (1e-2, 40 * EPS, 40 * EPS)),  # and four units in the last place
        ((math.inf, 1e-5, 1e-5), (math.inf, 1e-4, 1e-4)),
    ],
)
def test_a_bound_is_ten_times_the_measured_rounding(moved: tuple[float, ...], bounds: tuple[float, ...]) -> None:
    training = made()
    for name, by, value in zip(NAMES, moved, training.combined().values(), strict=True):
        training.perturbed[Key("gradient", name)] = value * (1 + by)
    assert training.view().bounds("gradient") == pytest.approx(dict(zip(NAMES, bounds, strict=True)))


@given(WORKERS, SEEDS, st.floats(1.5, 100), st.data())
def test_noise_above_the_bound_is_one_and_the_worker_is_named(
    workers: int, seed: int, times: float, data: st.DataObject
) -> None:
    training = made(workers, 1, seed)
    right, rank, name = training.combined(), data.draw(st.integers(0, workers - 1)), data.draw(st.sampled_from(NAMES))
    noise = some_tensors(seed + 1)[name]
    training.perturbed |= {Key("gradient", n): value * (1 + 1e-6) for n, value in right.items()}
    training.get(rank, {name: right[name] + noise * float(times * 1e-5 * right[name].norm() / noise.norm())})
    found = training.finding()
    assert (found.kind, found.name, found.worker) == ("gradient", name, rank)


@given(WORKERS, MICRO, SEEDS, st.data())
def test_other_weights_than_one_processs_are_loss_weighting(
    workers: int, micro: int, seed: int, data: st.DataObject
) -> None:
    count = workers * micro
    weights = data.draw(st.lists(st.floats(0.05, 3), min_size=count, max_size=count))
    assume(max(abs(w * count - 1) for w in weights) > 1e-2)
    training = made(workers, micro, seed)
    for rank in range(workers):
        training.get(rank, weighted(training.all_parts(), weights))
    found = training.finding()
    assert (found.cause, found.kind, found.worker) == (Cause.LOSS_WEIGHTING, "gradient", None)
    if max(weights) - min(weights) > 1e-2:
        assert "parts are weighted " + ", ".join(f"{w:.4g}" for w in weights) in found.why


@given(WORKERS, MICRO, SEEDS, FACTORS)
def test_one_factor_for_all_is_loss_weighting_and_says_it(workers: int, micro: int, seed: int, k: float) -> None:
    training = made(workers, micro, seed)
    for rank in range(workers):
        training.get(rank, {name: value * k for name, value in training.combined().items()})
    found = training.finding()
    assert found.cause is Cause.LOSS_WEIGHTING
    assert f"{k:.6g} times one process's gradient" in found.why
    assert "in 3 of 3 parameters" in found.why
    assert found.distance == pytest.approx(abs(k - 1))


def test_a_factor_is_called_by_what_it_is() -> None:
    assert name_factor(4, 4, 2) == " (the number of workers)"
    assert name_factor(0.25, 4, 2) == " (one by the number of workers)"
    assert name_factor(2, 4, 2) == " (the number of micro-batches)"
    assert name_factor(1 / 8, 4, 2) == " (one by workers times micro-batches)"
    assert name_factor(1.0, 4, 1) == name_factor(3.0, 4, 2) == ""


@given(WORKERS, SEEDS, FACTORS, SOME)
def test_a_factor_for_some_is_double_counting_or_a_missing_reduction(
    workers: int, seed: int, k: float, some: set[str]
) -> None:
    training = made(workers, 1, seed)
    for rank in range(workers):
        training.get(rank, {name: training.combined()[name] * k for name in some})
    found = training.finding()
    assert found.cause is (Cause.DOUBLE_COUNTING if k > 1 else Cause.MISSING_REDUCTION)
    assert found.name in some
    assert f"in {len(some)} of 3 parameters" in found.why


@given(WORKERS, SEEDS, st.data())
def test_a_factor_of_each_workers_own_is_clipping(workers: int, seed: int, data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.floats(0.01, 1), min_size=workers, max_size=workers))
    assume(max(factors) - min(factors) > 1e-2)
    training = made(workers, 1, seed)
    for rank, k in enumerate(factors):
        training.get(rank, {name: value * k for name, value in training.combined().items()})
    found = training.finding()
    assert found.cause is Cause.CLIPPING
    assert ", ".join(f"worker {rank}: {k:.4g}" for rank, k in enumerate(factors)) in found.why
    assert found.worker == min(range(workers), key=lambda rank: factors[rank])


@given(WORKERS, MICRO, SEEDS, st.floats(0.02, 50), SOME | st.just(set(NAMES)))
def test_every_worker_that_keeps_its_own_gradient_is_a_missing_reduction(
    workers: int, micro: int, seed: int, k: float, some: set[str]
) -> None:
    training = made(workers, micro, seed)
    for rank, parts in enumerate(training.parts):
        own = weighted(parts, [k] * micro)
        training.get(rank, {name: own[name] for name in some})
    found = training.finding()
    assert found.cause is Cause.MISSING_REDUCTION
    assert f"of its own rows, in {len(some)} of 3" in found.why


@given(WORKERS, SEEDS, st.data())
def test_one_worker_that_keeps_its_own_gradient_is_named(workers: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, workers - 1))
    training = made(workers, 1, seed)
    training.get(rank, training.parts[rank][0])
    found = training.finding()
    assert (found.cause, found.worker) == (Cause.MISSING_REDUCTION, rank)
    assert "differ from one another" in found.why


def with_strange_gradients(workers: int = 2) -> Made:
    training = made(workers)
    for rank in range(workers):
        training.get(rank, some_tensors(77))
    return training


def test_what_no_pattern_explains_is_not_explained() -> None:
    assert with_strange_gradients().finding().cause is Cause.UNKNOWN


def test_a_batchnorm_layer_explains_what_no_pattern_does() -> None:
    training = with_strange_gradients()
    training.facts[1]["batchnorm"] = ["a"]
    found = training.finding()
    assert (found.cause, found.kind, found.name) == (Cause.BATCHNORM, "buffer", "a")


def test_a_batchnorm_layer_does_not_hide_a_factor() -> None:
    training = made()
    training.facts[0]["batchnorm"] = ["a"]
    for rank in range(2):
        training.get(rank, {name: value * 2 for name, value in training.combined().items()})
    assert training.finding().cause is Cause.LOSS_WEIGHTING


def test_what_rounding_leaves_of_a_zero_gradient_is_not_compared() -> None:
    training = made()
    training.everywhere(Key("gradient", "a.bias"), torch.full((5,), 1e-9))
    training.get(1, {"a.bias": torch.full((5,), -3e-9)})
    assert training.findings() == []


@given(st.integers(2, 4), SEEDS)
def test_the_last_micro_batch_alone_is_a_missing_reduction(micro: int, seed: int) -> None:
    training = made(2, micro, seed)
    for name in NAMES:
        training.everywhere(Key("gradient", name), training.reference[Key("local gradient", name, micro - 1)])
    found = training.finding()
    assert (found.cause, found.name, found.shard) == (Cause.MISSING_REDUCTION, "a.weight", micro - 1)
    assert f"the last of {micro} micro-batches" in found.why


@given(st.integers(1, 4), SEEDS, st.floats(0.02, 50))
def test_what_a_script_does_to_the_sum_of_its_micro_batches_is_its_own_affair(micro: int, seed: int, k: float) -> None:
    training = made(2, micro, seed)
    for name, value in training.combined().items():
        training.everywhere(Key("gradient", name), value * k)
    training.remove("clip norm")
    assert training.findings() == []


def pattern(name: str, workers: int) -> Made:
    training = made(workers)
    right, parts = training.combined(), training.all_parts()
    for rank in range(workers):
        training.get(
            rank,
            {
                "own": parts[rank],
                "factor": {n: 3 * right[n] for n in NAMES},
                "clipped": {n: right[n] / (rank + 2) for n in NAMES},
                "weights": weighted(parts, [r + 1 for r in range(workers)]),
                "some": {"a.bias": right["a.bias"] * 2},
                "one": {"b.weight": right["b.weight"] * (1 + (rank == 1))},
                "strange": some_tensors(77),
            }[name],
        )
    return training


@given(st.sampled_from(["own", "factor", "clipped", "weights", "some", "one", "strange"]), WORKERS, st.data())
def test_the_class_does_not_depend_on_the_workers_numbers(name: str, workers: int, data: st.DataObject) -> None:
    training = pattern(name, workers)
    order = data.draw(st.permutations(range(workers)))
    one, other = training.finding(), training.permuted(order).finding()
    assert (other.cause, other.name, other.distance) == (one.cause, one.name, pytest.approx(one.distance))
    if one.worker is not None and (name, workers) != ("own", 2):  # two are equally far from their mean
        assert other.worker is not None
        assert order[other.worker] == one.worker
