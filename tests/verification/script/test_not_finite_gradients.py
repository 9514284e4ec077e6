"""A NaN is named by the worker whose rows made it, on made-up steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_steps import NAMES, Made, made

from samestep.verification.causes import Cause
from samestep.verification.record import Key


def spoil(training: Made, rank: int, micro: int, name: str, value: float) -> None:
    """One element; after the reduction all workers have it."""
    key = Key("local gradient", name, micro)
    spoilt = torch.as_tensor(training.workers[rank][key]).clone()
    spoilt[-1] = value
    training.workers[rank][key] = spoilt
    for other in range(len(training.workers)):
        training.get(other, {name: torch.full_like(spoilt, math.nan)})


PLACES = st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from(NAMES))  # worker, micro-batch, tensor


@given(st.sets(PLACES, min_size=1, max_size=4), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_the_first_micro_batch_of_the_first_worker_is_named(
    places: set[tuple[int, int, str]], value: float, one_process_too: bool
) -> None:
    """Tensors are noted in the order of backward, from the last layer on."""
    training = made(3, 2)
    for number, worker in enumerate(training.workers):
        worker[Key("loss", "loss", 0)] = worker[Key("loss", "loss", 1)] = 1.5 + number
    for place in places:
        spoil(training, *place, value)
    if one_process_too:
        training.reference[Key("local gradient", "a.bias", 1)] = torch.full((5,), math.nan)
    micro, rank, backwards = min((m, r, -NAMES.index(n)) for r, m, n in places)
    found = training.finding()
    assert (found.cause, found.kind, found.step) == (Cause.NOT_FINITE, "local gradient", 0)
    assert (found.shard, found.worker, found.name) == (micro, rank, NAMES[-backwards])
    assert ("a NaN" if math.isnan(value) else "an infinity") in found.why
    assert f"from a loss of {1.5 + rank};" in found.why
    assert f"one process has {'one too' if one_process_too else 'none'}" in found.why


def test_it_comes_before_other_checks_on_gradients_and_after_rows() -> None:
    training = made()
    spoil(training, 1, 0, "a.bias", math.nan)
    training.get(0, training.parts[0][0])  # a missing reduction, too
    training.workers[0][Key("setting", "not in the optimizer")] = "a.weight"
    training.workers[0][Key("setting", "not in the model")] = "1"
    assert training.finding().cause is Cause.NOT_FINITE
    training.workers[1][Key("rows", "batch", 0)] = "another row"
    assert training.finding().cause is Cause.DATA_ORDER


def test_without_local_gradients_the_loss_says_whose_it_is() -> None:
    training = made()
    spoil(training, 1, 0, "a.bias", math.nan)
    training.remove("local gradient")
    training.workers[1][Key("loss", "loss", 0)] = math.inf
    found = training.finding()
    assert (found.cause, found.kind, found.worker, found.shard) == (Cause.NOT_FINITE, "loss", 1, 0)
    assert "the loss is inf" in found.why


def test_an_infinite_loss_with_finite_gradients_is_no_alarm() -> None:
    training = made()
    training.workers[1][Key("loss", "loss", 0)] = math.inf
    assert training.findings() == []


def test_without_either_only_the_gradient_is_named() -> None:
    training = made()
    spoil(training, 1, 0, "a.bias", math.nan)
    training.remove("local gradient")
    found = training.finding()
    assert (found.cause, found.kind, found.name, found.worker) == (Cause.NOT_FINITE, "gradient", "a.bias", None)
    assert "whose rows made it is not known" in found.why


def test_a_nan_that_the_combination_makes_is_no_workers_own() -> None:
    training = made()
    for rank in range(2):
        training.get(rank, {"b.weight": torch.full((7,), math.nan)})
    found = training.finding()
    assert (found.cause, found.kind, found.name, found.worker) == (Cause.NOT_FINITE, "gradient", "b.weight", None)
    assert "each worker's own is finite" in found.why


@pytest.mark.parametrize("value", [0.0, 1e30, -1e-30])
def test_large_and_small_numbers_are_numbers(value: float) -> None:
    training = made()
    for one in [*training.workers, training.reference, training.perturbed]:
        one |= {Key("local gradient", name, 0): torch.full((3,), value) for name in NAMES}
    assert training.findings() == []
