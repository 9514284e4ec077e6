import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler as lrs

from samestep.errors import JobRefused
from samestep.system.json_values import as_before, plain, value_from

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.text(max_size=3) | st.integers() | st.just("pairs") | st.tuples(st.integers(), st.text(max_size=2))
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def through_json(value: Any, before: Any) -> Any:
    return as_before(json.loads(json.dumps(plain(value, "it"))), before)


@given(values)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    found = through_json(value, value)
    assert found == value
    assert repr(found) == repr(value)  # True is not 1, a tuple is no list


@given(values)
def test_json_holds_all_of_the_plain_form(value: Any) -> None:
    found = plain(value, "it")
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_with_their_dtype_and_bits(dtype: torch.dtype) -> None:
    value = torch.tensor([[0.1, 3.0], [1 / 3, 0.0]]).to(dtype)
    found = through_json(value, torch.zeros(2, 2, dtype=dtype))
    assert found.dtype == dtype
    assert torch.equal(found, value)
    assert float(through_json(torch.tensor(0.1), torch.tensor(0.0))) == float(torch.tensor(0.1))


def test_a_counter_comes_back_as_one() -> None:
    found = through_json(Counter({30: 1, 60: 2}), Counter())
    assert found == Counter({30: 1, 60: 2})
    assert isinstance(found, Counter)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, nn.Linear(1, 1), {"a": [lambda: 0]}])
def test_what_has_no_plain_form_is_refused_by_name(value: Any) -> None:
    with pytest.raises(JobRefused, match="the scheduler's state holds a "):
        plain(value, "the scheduler's state")


def sequential(optimizer: optim.Optimizer) -> lrs.LRScheduler:
    warm = lrs.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    falling = lrs.MultiStepLR(optimizer, milestones=[2, 2, 5], gamma=0.3)
    return lrs.SequentialLR(optimizer, [warm, falling], milestones=[4])


def chained(optimizer: optim.Optimizer) -> lrs.ChainedScheduler:
    return lrs.ChainedScheduler([lrs.ConstantLR(optimizer, 0.5, 3), lrs.ExponentialLR(optimizer, 0.9)])


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "StepLR": partial(lrs.StepLR, step_size=3),
    "MultiStepLR": partial(lrs.MultiStepLR, milestones=[3, 8, 8, 11], gamma=0.3),
    "ConstantLR": partial(lrs.ConstantLR, factor=0.3, total_iters=7),
    "LinearLR": partial(lrs.LinearLR, total_iters=9),
    "ExponentialLR": partial(lrs.ExponentialLR, gamma=0.93),
    "PolynomialLR": partial(lrs.PolynomialLR, total_iters=15, power=1.7),
    "CosineAnnealingLR": partial(lrs.CosineAnnealingLR, T_max=9, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": partial(lrs.CosineAnnealingWarmRestarts, T_0=3, T_mult=2),
    "OneCycleLR": partial(lrs.OneCycleLR, max_lr=0.3, total_steps=40),
    "CyclicLR": partial(lrs.CyclicLR, base_lr=0.01, max_lr=0.3, step_size_up=4, mode="triangular2"),
    "CyclicLR, exp_range": partial(lrs.CyclicLR, base_lr=0.01, max_lr=0.3, step_size_up=4, mode="exp_range", gamma=0.9),
    "LambdaLR": partial(lrs.LambdaLR, lr_lambda=lambda step: 0.95**step),
    "MultiplicativeLR": partial(lrs.MultiplicativeLR, lr_lambda=lambda step: 0.97),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
}


def built(make: Callable[[optim.Optimizer], Any], lr: Any) -> tuple[optim.Optimizer, Any]:
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": lr},
        {"params": [nn.Parameter(torch.zeros(1))], "lr": lr / 7},
    ]
    optimizer = optim.SGD(groups, lr=lr, momentum=0.9)
    return optimizer, make(optimizer)


def advance(optimizer: optim.Optimizer, scheduler: Any, steps: int) -> list[list[float]]:
    """Learning rate and momentum of every group after each of `steps` steps."""
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append([float(group[name]) for group in optimizer.param_groups for name in ("lr", "momentum")])
    return found


@pytest.mark.parametrize("after", [0, 5, 9])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_as_if_it_had_not_stopped(name: str, after: int) -> None:
    """As a checkpoint does it: groups and scheduler state through JSON into newly made ones."""
    optimizer, scheduler = built(SCHEDULERS[name], 0.1)
    advance(optimizer, scheduler, after)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    other, resumed = built(SCHEDULERS[name], 0.1)
    for group, stored in zip(other.param_groups, groups, strict=True):
        group.update({key: through_json(value, group.get(key)) for key, value in stored.items()})
    resumed.load_state_dict(through_json(scheduler.state_dict(), resumed.state_dict()))

    rates = advance(optimizer, scheduler, 20)
    assert advance(other, resumed, 20) == rates
    assert plain(resumed.state_dict(), "it") == plain(scheduler.state_dict(), "it")
    assert after == 9 or len({tuple(rate) for rate in rates}) > 1


@dataclasses.dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...] = ()
    pair: tuple[str, float] = ("", 0.0)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    first: Inner
    all: tuple[Inner, ...] = ()
    last: Inner | None = None
    free: Any = None


@pytest.mark.parametrize(
    "value",
    [
        Outer("a", Inner()),
        Outer("b", Inner((1, 2), ("x", 0.5)), (Inner((3,)), Inner()), Inner((4,)), {"a": [1, None]}),
    ],
)
def test_a_dataclass_comes_back_as_it_was(value: Outer) -> None:
    assert value_from(Outer, json.loads(json.dumps(dataclasses.asdict(value)))) == value


def test_strange_and_missing_fields_are_errors() -> None:
    for fields in ({"name": "a", "first": {}, "more": 1}, {"name": "a"}):
        with pytest.raises(TypeError):
            value_from(Outer, fields)
