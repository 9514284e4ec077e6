"""What is said of the clip norm, settings, moments, parameters and buffers, on made-up steps with right gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_steps import NAMES, Made, Value, made, together
from torch import Tensor

from samestep.verification.causes import Cause
from samestep.verification.record import Key

ROWS = Key("rows", "batch", 0)
OPTIMIZER, RATE = Key("setting", "optimizer"), Key("setting", "lr of group 0")
MOMENT = Key("optimizer state", "a.bias.momentum_buffer")
NORM = Key("clip norm", "norm")


def moved(value: Value, distance: float) -> Tensor:
    assert isinstance(value, Tensor)
    return value * (1 + distance)


def test_parameters_that_the_optimizer_does_not_hold_are_stale() -> None:
    training = made()
    training.workers[1][Key("setting", "not in the optimizer")] = "a.bias\nb.weight"
    training.workers[1][Key("setting", "not in the model")] = "2"
    found = training.finding()
    assert (found.cause, found.name, found.worker) == (Cause.STALE_WEIGHTS, "a.bias", 1)
    assert "holds 2 parameters that the model has not, and not 2 of its own" in found.why


@pytest.mark.parametrize(("apart", "strange"), [("a.bias", "0"), ("", "2")], ids=["frozen", "a second model's"])
def test_one_of_both_is_no_bug(apart: str, strange: str) -> None:
    training = made()
    training.everywhere(Key("setting", "not in the optimizer"), apart)
    training.everywhere(Key("setting", "not in the model"), strange)
    assert training.findings() == []


@given(st.integers(2, 4), st.data(), st.sampled_from([1e-3, -1e-3, 0.5]))
def test_another_clip_norm_is_clipping(workers: int, data: st.DataObject, by: float) -> None:
    training = made(workers)
    rank = data.draw(st.integers(0, workers - 1))
    right = training.workers[rank][NORM]
    assert isinstance(right, float)
    training.workers[rank][NORM] = right * (1 + by)
    found = training.finding()
    assert (found.cause, found.kind, found.worker) == (Cause.CLIPPING, "clip norm", rank)
    assert f"by norm {right * (1 + by):.6g}, one process by {right:.6g}" in found.why
    training.workers[rank][NORM] = right * (1 + 1e-7)
    assert training.findings() == []


@given(st.integers(2, 4), st.data())
def test_another_learning_rate_is_the_optimizers_state(workers: int, data: st.DataObject) -> None:
    training = made(workers)
    rank = data.draw(st.integers(0, workers - 1))
    training.workers[rank][RATE] = 0.2
    found = training.finding()
    assert (found.cause, found.kind, found.name, found.worker) == (
        Cause.OPTIMIZER_STATE,
        "setting",
        "lr of group 0",
        rank,
    )
    assert f"worker {rank} has 0.2, one process 0.1" in found.why


def continued(past_rates: tuple[float, float] = (0.1, 0.05), **settings: Value) -> Made:
    """Step 2, after two steps of optimizer 0; now optimizer 1 goes on."""
    training = made()
    for step, rate in enumerate(past_rates):
        past = made(seed=step + 1)
        for worker in past.workers:
            worker[ROWS] = f"of step {step}"
            worker[RATE] = rate
        training.earlier.append((step, together(past.workers)))
    training.step = 2
    now = {"optimizer": 1.0, "states_before": 3.0, "lr_of_group_0": 0.025, **settings}
    for name, value in now.items():
        training.everywhere(Key("setting", name.replace("_", " ")), value)
    return training


def test_a_new_optimizer_that_goes_on_is_right() -> None:
    assert continued().findings() == []


def test_a_new_optimizer_without_moments_is_found_though_one_process_has_it_too() -> None:
    found = continued(states_before=0.0).finding()
    assert (found.cause, found.kind, found.step) == (Cause.OPTIMIZER_STATE, "optimizer state", 2)
    assert found.name == "a.weight.momentum_buffer"
    assert "without the state that the one of step 1 had" in found.why


def test_a_new_optimizer_with_the_first_learning_rate_is_found() -> None:
    found = continued(lr_of_group_0=0.1).finding()
    assert (found.cause, found.kind, found.name) == (Cause.OPTIMIZER_STATE, "setting", "lr of group 0")
    assert "begins with 0.1 as at the start, not on from 0.05" in found.why


def test_the_same_optimizer_may_go_back_to_the_first_learning_rate() -> None:
    assert continued(optimizer=0.0, lr_of_group_0=0.1, states_before=0.0).findings() == []


def test_two_optimizers_may_take_turns() -> None:
    training = continued(optimizer=0.0, lr_of_group_0=0.1, states_before=0.0)
    between = made(seed=2).workers[0] | {ROWS: "of step 1", RATE: 0.05, OPTIMIZER: 1.0}
    training.earlier[1] = (1, together([between, between]))
    assert training.findings() == []


def test_a_new_optimizer_may_keep_a_rate_that_never_changed() -> None:
    assert continued((0.1, 0.1), lr_of_group_0=0.1).findings() == []


def test_a_new_optimizer_after_one_without_moments_has_none_to_lose() -> None:
    training = continued(states_before=0.0)
    training.remove("optimizer state")
    training.earlier = [
        (step, {key: each for key, each in past.items() if key.kind != "optimizer state"})
        for step, past in training.earlier
    ]
    assert training.findings() == []


def unchanged(names: list[str]) -> Made:
    training = made()
    for name in names:
        training.everywhere(Key("parameter", f"unchanged {name}"), "unchanged")
    return training


def test_a_step_that_changes_nothing_is_found() -> None:
    found = unchanged(NAMES).finding()
    assert (found.cause, found.kind, found.name) == (Cause.STALE_WEIGHTS, "parameter", "a.weight")
    assert "no parameter of the 3" in found.why


def test_a_step_may_leave_some_as_they_were_or_have_no_rate_or_no_gradient() -> None:
    assert unchanged(NAMES[:2]).findings() == []
    warming = unchanged(NAMES)
    warming.everywhere(RATE, 0.0)
    assert warming.findings() == []
    flat = unchanged(NAMES)
    flat.remove("clip norm")
    for name in NAMES:
        flat.everywhere(Key("gradient", name), torch.zeros(3))
    assert flat.findings() == []


@pytest.mark.parametrize(
    ("key", "cause"),
    [
        (MOMENT, Cause.OPTIMIZER_STATE),
        (Key("parameter", "b.weight"), Cause.STALE_WEIGHTS),
        (Key("buffer", "a.average"), Cause.BUFFERS),
    ],
    ids=lambda value: str(value),
)
@given(workers=st.integers(2, 4), data=st.data())
def test_what_is_left_after_the_step_is_compared(workers: int, data: st.DataObject, key: Key, cause: Cause) -> None:
    training = made(workers)
    rank = data.draw(st.integers(0, workers - 1))
    training.workers[rank][key] = moved(training.workers[rank][key], 1e-2)
    found = training.finding()
    assert (found.cause, found.kind, found.name, found.worker) == (cause, key.kind, key.name, rank)
    assert found.distance == pytest.approx(1e-2, rel=1e-3)


def test_a_batchnorms_buffer_is_batchnorm() -> None:
    training = made()
    training.facts[0]["batchnorm"] = ["a"]
    training.workers[1][Key("buffer", "a.average")] = torch.full((3,), 1.1)
    assert training.finding().cause is Cause.BATCHNORM
    training.facts[0]["batchnorm"] = ["b"]
    assert training.finding().cause is Cause.BUFFERS


def test_moments_and_parameters_may_be_a_little_off_and_buffers_may_not() -> None:
    training = made()
    for key in (MOMENT, Key("parameter", "b.weight")):
        training.workers[1][key] = moved(training.workers[1][key], 5e-5)
    assert training.findings() == []
    key = Key("buffer", "a.average")
    training.workers[1][key] = moved(training.workers[1][key], 5e-5)
    assert training.finding().cause is Cause.BUFFERS


def test_what_is_next_to_zero_may_be_relatively_far() -> None:
    training, key = made(), Key("parameter", "a.bias")
    training.everywhere(key, torch.full((5,), 1e-9))
    training.workers[1][key] = torch.full((5,), 9e-9)
    assert training.findings() == []
    training.workers[1][key] = torch.full((5,), 9e-7)
    assert training.finding().cause is Cause.STALE_WEIGHTS


def test_of_two_differences_the_earlier_kind_is_named() -> None:
    training = made()
    training.workers[0][Key("buffer", "a.average")] = torch.zeros(3)
    training.workers[1][MOMENT] = torch.zeros(5)
    assert training.finding().cause is Cause.OPTIMIZER_STATE
    training.workers[1][RATE] = 0.3
    assert training.finding().kind == "setting"
    training.workers[1][NORM] = 100.0
    assert training.finding().kind == "clip norm"
    training.get(1, {"a.bias": torch.ones(5)})
    assert training.finding().kind == "gradient"
