"""Whether an optimizer looks at several parameters together: a small twin of it is asked, not its name.

A twin has the optimizer's class, groups and settings, over a few elements of every parameter. One takes steps over all
of them, two others over every second one each, with the same gradients. Where an update depends on a norm, a step size
or a counter over several parameters (LAMB's global norm, D-Adaptation, Prodigy), they end differently.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from samestep.numerics import random_streams
from samestep.parallel.gradients.job_optimizer import is_elementwise

STEPS = 4  # a step size that adapts does so from the second one on
MOST = 6  # elements of each dimension
LARGE = 30.0  # so that norms are above usual bounds


def mixed_parameter(optimizer: optim.Optimizer, names: Mapping[int, str]) -> str | None:
    """A parameter, or setting, that changes in another way when the optimizer has only every second one.

    names: of parameters, by id. None: none, or the optimizer cannot be tried.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if is_elementwise(optimizer) or len(params) < 2:
        return None
    with random_streams.kept():
        try:
            whole = _updated(optimizer, params, lambda i: True)
            parts = [_updated(optimizer, params, lambda i, half=half: i % 2 == half) for half in (0, 1)]  # type: ignore[misc]
        except Exception:  # noqa: BLE001 - somebody else's code, that was not made for twins
            return None
    for i, param in enumerate(params):
        if not torch.equal(whole[0][i], parts[i % 2][0][i]):
            return names.get(id(param), f"parameter {i}")
    for half, (_, settings) in enumerate(parts):
        for name, value in settings.items():
            if value != whole[1][name] and value == value:
                return f"the setting {name} of the {'first' if half == 0 else 'second'} half"
    return None


def _updated(
    optimizer: optim.Optimizer, params: list[nn.Parameter], has: Callable[[int], bool]
) -> tuple[list[Tensor], dict[str, Any]]:
    """Values and settings of a twin after some steps over the parameters whose numbers it `has`."""
    made = torch.Generator().manual_seed(0)

    def noise(param: nn.Parameter) -> Tensor:
        shape = tuple(min(size, MOST) for size in param.shape)
        return torch.randn(shape, generator=made, dtype=torch.float32).to(param.dtype)

    small = [nn.Parameter(noise(param)) for param in params]
    twin = object.__new__(type(optimizer))
    memo: dict[int, Any] = {id(param): one for param, one in zip(params, small, strict=True)}
    vars(twin).update(copy.deepcopy(vars(optimizer), memo))
    vars(twin).pop("step", None)
    own = {id(one) for i, one in enumerate(small) if has(i)}
    for group in twin.param_groups:
        group["params"] = [one for one in group["params"] if id(one) in own]
    for param, one in zip(params, small, strict=True):
        if param in twin.state:
            del twin.state[param]
        twin.state.pop(one, None)  # of the real one's size
    for _ in range(STEPS):
        for one in small:
            one.grad = noise(one) * LARGE if id(one) in own else noise(one) * 0
        twin.step()
    settings = {
        f"{key!r} in parameter group {number}": value
        for number, group in enumerate(twin.param_groups)
        for key, value in group.items()
        if isinstance(value, int | float)
    }
    return [one.detach() for one in small], settings
