"""The job's optimizer: whether it can be sharded, and its step without torch's decorators.

The decorators import `torch._dynamo`, 1.2 s before the first step, to keep torch.compile out of the optimizer. Nothing
compiles here, so the functions that they wrap are called directly; the arithmetic is the same. An optimizer that is not
as expected (hooks, `differentiable`, a class of somebody else, another torch) is left as it is and merely starts later.
"""

import inspect
from types import MethodType
from typing import Any

import torch
from torch import optim

from samestep.errors import JobRefused
from samestep.parallel.user_code import user_place

ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.Adagrad,
    optim.Adadelta,
    optim.RMSprop,
    optim.Rprop,
    optim.ASGD,
)
"""Classes whose update of an element depends on that element's own gradient and state only."""


def check_optimizer(optimizer: object) -> optim.Optimizer:
    """Refuse what cannot be sharded. Subclasses of the known classes count as unknown."""
    if not isinstance(optimizer, optim.Optimizer):
        raise JobRefused(
            f"Job.optimizer returned a {type(optimizer).__name__}, not a torch.optim.Optimizer: "
            "write optimizer=lambda params: SGD(params, lr=0.1)"
        )
    name = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if isinstance(optimizer, optim.LBFGS) or (closure is not None and closure.default is inspect.Parameter.empty):
        raise JobRefused(
            f"the optimizer {name} evaluates the whole model several times per step and cannot be sharded: "
            "use one that takes a step from one gradient, for example SGD or AdamW"
        )
    if isinstance(optimizer, optim.SparseAdam):
        raise JobRefused("SparseAdam needs sparse gradients, samestep adds dense ones: use Adam")
    vars(optimizer)["add_param_group"] = _refuse_group
    return optimizer


def _refuse_group(group: dict[str, Any]) -> None:
    """Stands in for `add_param_group`, once the optimizer is built."""
    raise groups_changed(f"add_param_group was called at {user_place()}")


def groups_changed(what: str) -> JobRefused:
    return JobRefused(
        f"{what}, and the optimizer's groups are spread over the workers before the first step: make all groups in "
        "Job.optimizer, with a learning rate of 0 for those that are to be trained later"
    )


def is_elementwise(optimizer: optim.Optimizer) -> bool:
    return type(optimizer) in ELEMENTWISE


def implementation(optimizer: optim.Optimizer) -> str:
    """Class and implementation, which is numerics: `SGD/fused`, `AdamW/foreach`, `Adam`."""
    used = [flag for flag in ("fused", "foreach") if any(group.get(flag) for group in optimizer.param_groups)]
    return "/".join([type(optimizer).__name__, *used])


BUILDING = ("add_param_group",)  # methods of Optimizer that run while one is built


def skip_dynamo_while_building() -> None:
    """Call once per process, before an optimizer is built."""
    for name in BUILDING:
        function = getattr(getattr(optim.Optimizer, name), "__wrapped__", None)
        if function is not None and not hasattr(function, "__dynamo_disable"):
            function.__dynamo_disable = function  # where torch keeps the compiler-proof version


def skip_dynamo_in_step(optimizer: optim.Optimizer, known: tuple[type[optim.Optimizer], ...]) -> None:
    """Let `optimizer.step` be the undecorated function, for classes in `known` without hooks."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if type(optimizer) in known and not hooks and not optimizer.defaults.get("differentiable"):
        bare = torch.no_grad()(inspect.unwrap(type(optimizer).step))
        vars(optimizer)["step"] = MethodType(bare, optimizer)  # a method, since schedulers wrap it once more
