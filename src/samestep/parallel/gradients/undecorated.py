"""torch's optimizers without their decorators, which import `torch._dynamo`: 1.2 s before the first step.

The decorators tell torch.compile to stay out of the optimizer. Nothing compiles here, so what they
wrap is called directly; the arithmetic is the same function. Whatever is not as we know it (hooks,
`differentiable`, a class of somebody else, another torch) is left as it is and merely starts later.
"""

import inspect
from types import MethodType

import torch
from torch import optim

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
