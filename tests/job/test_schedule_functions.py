"""A schedule is looked at ahead without being moved, and its functions by what they read."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LambdaLR

from samestep.job.schedule_functions import function_values, is_small, rates_ahead, values_read

SCALE = 0.5


class Bent:
    """A callable object: its attributes are part of LambdaLR's state."""

    def __init__(self) -> None:
        self.rate = 0.9

    def __call__(self, step: int) -> float:
        return self.rate**step


SCHEDULES: dict[str, Callable[[optim.Optimizer], Any]] = {
    "lambda": lambda one: LambdaLR(one, lambda step: SCALE**step),
    "object": lambda one: LambdaLR(one, Bent()),
    "multiplied": lambda one: lr_scheduler.MultiplicativeLR(one, lambda step: 0.95),
    "cosine": lambda one: lr_scheduler.CosineAnnealingLR(one, 20),
    "steps": lambda one: lr_scheduler.MultiStepLR(one, [3, 9]),
    "one cycle": lambda one: lr_scheduler.OneCycleLR(one, 0.2, total_steps=100),
    "cyclic": lambda one: lr_scheduler.CyclicLR(one, 0.01, 0.1, step_size_up=4, scale_fn=lambda x: SCALE),
    "in turn": lambda one: lr_scheduler.SequentialLR(
        one, [lr_scheduler.ConstantLR(one, 0.1, 4), lr_scheduler.ExponentialLR(one, 0.9)], [4]
    ),
    "together": lambda one: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(one, 0.1, 4), LambdaLR(one, lambda step: SCALE)]
    ),
    "restarts": lambda one: lr_scheduler.CosineAnnealingWarmRestarts(one, 5),
}


def made(name: str, steps: int = 3) -> tuple[optim.Optimizer, Any]:
    layer = nn.Linear(2, 2)
    optimizer = optim.SGD([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 0.3}], lr=0.1, momentum=0.9)
    scheduler = SCHEDULES[name](optimizer)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


def groups_of(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_next_rates_are_those_that_come_and_looking_moves_nothing(name: str) -> None:
    optimizer, scheduler = made(name)
    before = copy.deepcopy(groups_of(optimizer)), copy.deepcopy(scheduler.state_dict())
    ahead = rates_ahead(optimizer, scheduler)
    assert ahead is not None
    assert (groups_of(optimizer), scheduler.state_dict()) == before or name == "object"
    assert groups_of(optimizer) == before[0]
    for step in range(1, 17):
        optimizer.step()
        scheduler.step()
        if str(step) in ahead:
            assert [group["lr"] for group in ahead[str(step)]] == [group["lr"] for group in optimizer.param_groups]


def test_a_schedule_that_cannot_be_copied_is_none() -> None:
    optimizer, scheduler = made("cosine")
    scheduler.stream = (i for i in range(3))
    assert rates_ahead(optimizer, scheduler) is None


def test_values_come_from_closures_globals_defaults_partials_and_attributes() -> None:
    warm, options = 5, types.SimpleNamespace(floor=0.1, layers=[nn.Linear(1, 1)])
    data = torch.zeros(5000)

    def inner(step: int) -> float:
        return min(1.0, step / warm)

    def outer(step: int, power: float = 2.0) -> float:
        return max(options.floor, inner(step)) ** power * SCALE + 0 * len(data)

    optimizer, _ = made("cosine")
    assert values_read(LambdaLR(optimizer, outer)) == {
        f"{name} in lr_lambdas[{i}]": value
        for i in range(2)
        for name, value in {"SCALE": 0.5, "warm": 5, "options.floor": 0.1, "default 0": 2.0}.items()
    }
    optimizer, _ = made("cosine")
    found = values_read(LambdaLR(optimizer, functools.partial(outer, power=3.0)))
    assert found["argument power in lr_lambdas[0]"] == 3.0
    assert found["warm in lr_lambdas[0]"] == 5


def test_functions_inside_of_other_schedules_are_seen() -> None:
    assert values_read(made("together")[1]) == {
        "SCALE in _schedulers[1].lr_lambdas[0]": 0.5,
        "SCALE in _schedulers[1].lr_lambdas[1]": 0.5,
    }
    assert any(name.startswith("SCALE in _scale_fn") for name in values_read(made("cyclic")[1]))


def test_the_values_of_a_function_are_taken_and_failures_too() -> None:
    rates = [1.0, 0.5, 0.25]
    optimizer, _ = made("cosine")
    found = function_values(LambdaLR(optimizer, lambda step: rates[step]), 6)
    assert [found[f"lr_lambdas[0]({step})"] for step in (0, 1, 2, 4)] == [1.0, 0.5, 0.25, "IndexError"]


@pytest.mark.parametrize(
    ("value", "small"),
    [
        (1, True),
        ([1] * 500, True),
        ([1] * 1001, False),
        (torch.zeros(2000), False),
        ({"a": [torch.zeros(2000)]}, False),
    ],
)
def test_what_is_small(value: Any, small: bool) -> None:
    assert is_small(value) == small
