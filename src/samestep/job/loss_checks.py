"""Checks of what a job's loss takes and returns; each refuses with the reason and the way out."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused, LossNotFinite

IGNORED = -100  # the label that torch's and Hugging Face's losses leave out


def check_one_given(loss: Any, forward: Any) -> None:
    """Refuse a job with both loss= and forward=, with neither, or with a loss that has parameters."""
    if (loss is None) == (forward is None):
        given = "both" if loss else "neither"
        raise JobRefused(
            f"a Job needs either loss=, for loss(model(x), y), or forward=, for forward(model, batch): {given} given"
        )
    if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
        raise JobRefused(f"the loss {type(loss).__name__} has parameters of its own: make it part of the model")


def check_no_label_is_ignored(batch: Any) -> None:
    """Refuse a batch whose labels a plain mean would weigh wrongly."""
    place = ignored_label_in(batch)
    if place is not None:
        raise JobRefused(
            f"{place} holds labels of {IGNORED}, which losses leave out, and the loss returned is a plain mean: "
            "shards with different numbers of labels would be weighted wrongly; return (sum, weight) instead, "
            "for example (F.cross_entropy(logits, labels, reduction='sum'), (labels != -100).sum())"
        )


def ignored_label_in(batch: Any) -> str | None:
    """The place of an integer tensor that holds -100, if there is one."""
    if isinstance(batch, Mapping):
        parts = [(f"batch[{name!r}]", value) for name, value in batch.items()]
    elif isinstance(batch, tuple | list):
        parts = [(f"batch[{i}]", value) for i, value in enumerate(batch)]
    else:
        parts = [("the batch", batch)]
    for place, value in parts:
        if isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32) and bool((value == IGNORED).any()):
            return place
    return None


def check_pair(batch: Any) -> None:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, tuple | list | Mapping) else ""
        raise JobRefused(
            f"loss= computes loss(model(x), y) from (x, y) data, the batch is a {type(batch).__name__}{size}: "
            "give two columns, or forward= instead of loss="
        )


def check_weight(value: Any) -> float:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.dim() else repr(value)
        raise JobRefused(
            f"the loss is a pair, which means (sum, weight), and its weight is {shown}: return the number of rows or "
            "tokens that the sum is over, or the mean loss alone"
        )
    return float(number)


def check_scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise JobRefused(
            f"the loss is {shape}, a step needs one number: return a mean over the rows (reduction='mean'), "
            "or a (sum, weight) pair"
        )
    if not value.is_floating_point():
        raise JobRefused(f"the loss is a number of type {value.dtype}, which has no gradient: compute it in floats")
    return value.reshape(())


def not_finite(shard: int, objective: Tensor, parameters: Iterable[tuple[str, Tensor]]) -> LossNotFinite:
    """The error of a loss that is not finite; a parameter that is not finite either is named as the cause."""
    bad = next((name for name, param in parameters if not bool(param.isfinite().all())), None)
    cure = "lower the learning rate or look at the shard's rows"
    if bad is not None:  # the shard is not to blame
        cure = (
            f"its rows are not the cause, {bad} is not finite since an earlier step's update; lower the "
            "learning rate, or let `samestep verify JOB --steps N` name the gradient that was not"
        )
    return LossNotFinite(f"the loss of shard {shard} is {float(objective.detach())}: {cure}; --allow-nan goes on")


def without_gradient(shard: int) -> JobRefused:
    """The error of a loss without a graph."""
    return JobRefused(
        f"the loss of shard {shard} does not depend on any trainable parameter: compute it from the model's "
        "outputs, without .detach(), .item() or torch.no_grad()"
    )
