"""Schedules have a position that can be written, and count in steps."""

from typing import Any

import pytest
import torch
from torch import nn, optim

import samestep
from samestep.data.row_order import RowOrder
from samestep.errors import JobRefused
from samestep.job.scheduler import make_scheduler, schedule_warning

rates = optim.lr_scheduler


def job(scheduler: Any, **more: Any) -> samestep.Job:
    return samestep.Job(
        model=lambda: nn.Linear(2, 1), loss=nn.MSELoss(), data=(torch.zeros(40, 2), torch.zeros(40, 1)), batch_size=10,
        optimizer=lambda params: optim.SGD(params, 0.1), scheduler=scheduler, **more,
    )  # fmt: skip


def warned(scheduler: Any, **more: Any) -> str | None:
    made = job(scheduler, **more)
    optimizer = optim.SGD(nn.Linear(2, 1).parameters(), 0.1)
    return schedule_warning(made, make_scheduler(made, optimizer), RowOrder(40, 10, 0))


IN_EPOCHS: dict[str, Any] = {
    "T_max": lambda o: rates.CosineAnnealingLR(o, T_max=6),
    "total_iters": lambda o: rates.LinearLR(o, total_iters=6),
    "the last milestone": lambda o: rates.MultiStepLR(o, [3, 6]),
    "T_0": lambda o: rates.CosineAnnealingWarmRestarts(o, 6),
}


@pytest.mark.parametrize("name", IN_EPOCHS)
def test_a_length_in_epochs_is_reported(name: str) -> None:
    text = warned(IN_EPOCHS[name], epochs=6)
    assert text is not None
    assert text.startswith(f"{name} of Job.scheduler is 6, the number of epochs")
    assert "after 6 of 24 steps" in text


def test_lengths_in_steps_are_not() -> None:
    assert warned(lambda o: rates.CosineAnnealingLR(o, T_max=24), epochs=6) is None
    assert warned(lambda o: rates.LambdaLR(o, lambda step: 0.9**step), epochs=6) is None
    assert warned(IN_EPOCHS["T_max"], steps=6) is None
    assert warned(None, epochs=6) is None


class Nameless:
    def __init__(self, optimizer: optim.Optimizer) -> None:
        pass

    def step(self) -> None:
        pass


def test_a_schedule_without_a_position_is_refused() -> None:
    with pytest.raises(JobRefused, match=r"made a Nameless without state_dict"):
        warned(Nameless, epochs=6)
