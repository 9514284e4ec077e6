"""What a run began with stays: which parameters are trained, their values in forward, no gradients of others."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from samestep.errors import JobRefused
from samestep.parallel.execution.unchanged import Unchanged


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    made[1].bias.requires_grad_(False)
    return made


def freeze(one: nn.Sequential) -> None:
    one[0].weight.requires_grad_(False)


def thaw(one: nn.Sequential) -> None:
    one[1].bias.requires_grad_(True)


def leave_gradients(one: nn.Sequential) -> None:
    one(torch.ones(1, 3)).sum().backward()


def write(one: nn.Sequential) -> None:
    one[0].bias.data.mul_(2)


def nudge(one: nn.Sequential) -> None:
    with torch.no_grad():
        one[0].bias.add_(1)


BETWEEN: dict[str, tuple[Callable[[nn.Sequential], None], str]] = {
    "freeze": (freeze, r"requires_grad of parameter 0\.weight was True when .* set to False"),
    "thaw": (thaw, r"requires_grad of parameter 1\.bias was False when .* set to True"),
    "gradients": (leave_gradients, r"parameter 0\.weight was given a gradient"),
}
IN_FORWARD = {
    **BETWEEN,
    "write": (write, r"forward changed parameter 0\.bias"),
    "nudge": (nudge, r"forward changed parameter 0\.bias"),
}


@pytest.mark.parametrize("act", BETWEEN)
def test_between_steps(act: str) -> None:
    one, (change, message) = model(), BETWEEN[act]
    watch = Unchanged(one.named_parameters())
    with watch.during_forward():
        one(torch.ones(1, 3))
    change(one)
    with pytest.raises(JobRefused, match=message + ".* between steps"), watch.during_forward():
        one(torch.ones(1, 3))


@pytest.mark.parametrize("act", IN_FORWARD)
def test_in_forward(act: str) -> None:
    one, (change, message) = model(), IN_FORWARD[act]
    with pytest.raises(JobRefused, match=message), Unchanged(one.named_parameters()).during_forward():
        change(one)


@pytest.mark.parametrize("act", [freeze, thaw])
def test_what_forward_undoes_itself_is_its_own(act: Callable[[nn.Sequential], None]) -> None:
    one = model()
    with Unchanged(one.named_parameters()).during_forward():
        before = [param.requires_grad for param in one.parameters()]
        act(one)
        for param, trained in zip(one.parameters(), before, strict=True):
            param.requires_grad_(trained)


def test_a_parameter_that_no_optimizer_holds_keeps_its_gradient_without_an_alarm() -> None:
    """Nobody takes it away: it adds up, as it does in a plain loop."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    watch = Unchanged(model.named_parameters(), model[0].parameters())
    for _ in range(2):
        with watch.during_forward():
            y = model(torch.ones(1, 2)).sum()
        torch.autograd.backward([y], inputs=list(model[1].parameters()))
    model[0].weight.grad = torch.ones(2, 2)
    with pytest.raises(JobRefused, match=r"parameter 0\.weight was given a gradient"), watch.during_forward():
        pass
