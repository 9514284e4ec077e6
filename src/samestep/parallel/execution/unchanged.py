"""Forward must leave the parameters alone: every shard of a step sees the same weights.

What a run began with stays: which parameters are trained, since the optimizer and the memory for gradients were made
for these; and nobody leaves a gradient on them, to which the next backward would add.

torch counts changes in place, and the counts are compared around every forward. `param.data.mul_()`
escapes that count, so around a worker's first forward the contents are compared as well, by a
checksum: it takes no memory, and code that changes its weights hardly waits until the second.
"""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from samestep.errors import JobRefused
from samestep.parallel.gradients.layout import dense, storage_order


class Unchanged:
    """Watches over the parameters that this worker computes with, frozen ones included.

    updated: those that an optimizer holds, whose gradients are taken away; default: all.
    """

    def __init__(
        self, params: Iterable[tuple[str, nn.Parameter]], updated: Iterable[nn.Parameter] | None = None
    ) -> None:
        self._params = list(params)
        held = {id(param) for param in (updated if updated is not None else (param for _, param in self._params))}
        self._updated = [(name, param) for name, param in self._params if id(param) in held]
        self._first = True
        self._trained = [param.requires_grad for _, param in self._params]

    @contextmanager
    def during_forward(self) -> Iterator[None]:
        """Raises JobRefused when what runs inside changed a parameter, or when since the last time one was frozen or
        thawed, or given a gradient."""
        self._check_left_alone("between steps")
        versions = [param._version for _, param in self._params]
        sums = [_checksum(param) for _, param in self._params] if self._first else []
        yield
        for (name, param), version in zip(self._params, versions, strict=True):
            if param._version != version:
                raise changed(name)
        for (name, param), before in zip(self._params, sums, strict=bool(sums)):
            if _checksum(param) != before:
                raise changed(name)
        self._first = False
        self._check_left_alone("by forward")

    def _check_left_alone(self, when: str) -> None:
        trained = [param.requires_grad for _, param in self._params]
        if trained == self._trained and not any(param.grad is not None for _, param in self._updated):
            return
        for (name, param), before in zip(self._params, self._trained, strict=True):
            if param.requires_grad != before:
                raise switched(name, to=param.requires_grad, when=when)
        for name, param in self._updated:
            if param.grad is not None:
                raise JobRefused(
                    f"parameter {name} was given a gradient {when}, which the step's own would be added to: let code "
                    "that takes gradients of the model use torch.autograd.grad, or a copy.deepcopy of the model"
                )


def _checksum(param: nn.Parameter) -> int:
    return zlib.crc32(storage_order(dense(param.detach())).view(torch.uint8).cpu().numpy().data)


def changed(name: str) -> JobRefused:
    return JobRefused(
        f"forward changed parameter {name}: shards would see different weights; change parameters "
        "in the optimizer, or make the value a buffer"
    )


def switched(name: str, *, to: bool, when: str) -> JobRefused:
    return JobRefused(
        f"requires_grad of parameter {name} was {not to} when the run began and was set to {to} {when}, and the "
        "optimizer and the memory for gradients were made for what it was: let Job.model set it before training; to "
        "train something else from a step on, end the run there with a checkpoint of the weights (--save) and start "
        "another job from them; to hold a parameter for a while, set its group's learning rate and weight decay to 0"
    )
