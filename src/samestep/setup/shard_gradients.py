"""One shard of the whole model, computed beside a run: the run has no trace of it.

leaves     fresh ones over the same memory, so that neither hooks nor slots of the run see a gradient
buffers    copies
modules    their attributes are put back, and so are the random generators
forward    the layer's own, not the one that writes gradients to their places or meets other shards
"""

import copy
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samestep.job.objective import LossFacts, Objective
from samestep.numerics import random_streams
from samestep.system.device import precision_of


@dataclass(frozen=True)
class ShardGradients:
    """The outcome of one shard. gradients, buffers: by registered name; a gradient may be None."""

    facts: LossFacts
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]


def shard_gradients(
    model: nn.Module, objective: Objective, batch: Any, rows: int, precision: str, *key: int | str
) -> ShardGradients:
    """Forward and backward of one shard from the model's present values, under the random stream named by `key`.

    Raises what the model or the loss raises.
    """
    with beside_the_run(model) as leaves, torch.enable_grad(), uncompiled():
        random_streams.enter(*key)
        with precision_of(precision, next(model.parameters()).device):
            loss = objective(model, batch, rows)
        if loss.objective.requires_grad:
            loss.objective.backward()  # type: ignore[no-untyped-call]
        buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        return ShardGradients(loss.facts, {name: leaf.grad for name, leaf in leaves.items()}, buffers)


@contextmanager
def beside_the_run(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Inside, `model` has leaves and buffers of its own; yields the trainable leaves by name."""
    modules, streams = list(model.modules()), random_streams.leave()
    kept = [(module, dict(vars(module)), _contents(module)) for module in modules]
    try:
        fresh: dict[int, nn.Parameter] = {}
        for module in modules:
            if getattr(vars(module).get("forward"), "__module__", "").startswith("samestep."):
                del vars(module)["forward"]
            for name, param in list(module._parameters.items()):
                if param is not None and param.requires_grad:
                    leaf = fresh.setdefault(id(param), nn.Parameter(param.detach()))
                    setattr(module, name, leaf)  # not _parameters: an LSTM keeps a list of its own
        copies: dict[int, Tensor] = {}
        for module in modules:
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
        yield {name: param for name, param in model.named_parameters() if param.requires_grad}
    finally:
        for module, attributes, contents in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in contents:
                _refill(container, content)
        random_streams.resume(streams)


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, what torch.compile made runs as it was written: other leaves would have it compiled once more."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The module's own lists, dicts and sets, each with a copy of what it holds."""
    return [
        (value, copy.copy(value)) for value in vars(module).values() if isinstance(value, dict | list | set | deque)
    ]


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, dict | set):
        container.update(content)
    else:
        container.extend(content)
