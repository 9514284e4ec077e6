"""A shard's loss and its weight, so that shards of any size add up to the batch's loss exactly.

    L = Σ_s value_s / Σ_s weight_s        value: sum over a shard's rows (or tokens), weight: their count

A mean over rows has weight n_s. torch's cross-entropy with `ignore_index` or class weights is a mean
over *something else*, which its targets tell; weighting its shards by rows instead is wrong by half
the gradient. What only forward can tell is returned by it as (sum, weight).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.errors import JobRefused

IGNORED = -100  # the label that torch's and Hugging Face's losses leave out


@dataclass(frozen=True)
class ShardLoss:
    """One shard's objective, a 0-dim tensor with its graph.

    A `mean` has to be multiplied by its weight to become the shard's sum.
    """

    objective: Tensor
    weight: float
    is_mean: bool

    @property
    def sum(self) -> float:
        value = float(self.objective.detach())
        return value * self.weight if self.is_mean else value

    def seed(self, batch_rows: int) -> float:
        """What backward starts from: dL/d(objective) if the batch's weight were its number of rows.

        For a mean it is. For a sum it is known only when every shard has been through forward; what
        the division by `batch_rows` then got wrong is one factor for the whole gradient.
        """
        return (self.weight if self.is_mean else 1.0) / batch_rows


class Objective:
    """The job's loss, as a function of (model, batch) with exact weights."""

    def __init__(self, loss: Callable[..., Any] | None, forward: Callable[..., Any] | None) -> None:
        if (loss is None) == (forward is None):
            given = "both" if loss else "neither"
            raise JobRefused(
                f"a Job needs either loss=, for loss(model(x), y), or forward=, for forward(model, batch): "
                f"{given} given"
            )
        if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            raise JobRefused(f"the loss {type(loss).__name__} has parameters of its own: make it part of the model")
        self._forward = forward
        self._loss = loss
        self._torch_loss = None if loss is None else TorchLoss.recognise(loss)

    @property
    def is_plain_sum(self) -> bool:
        """A loss with reduction="sum": the batch's loss is divided by nothing."""
        return self._torch_loss is not None and self._torch_loss.weigh is None

    @property
    def has_outputs(self) -> bool:
        """Whether data are (x, y) and the model's outputs stand apart from the loss."""
        return self._forward is None

    def __call__(self, model: nn.Module, batch: Any, rows: int) -> ShardLoss:
        """Raises JobRefused when the loss is no scalar, or a mean over labels of which some are ignored."""
        return self.settle(self.run(model, batch), batch, rows)

    def run(self, model: nn.Module, batch: Any) -> Any:
        """What the model makes of a batch: the outputs, or what the job's own forward returns."""
        if self._forward is not None:
            return self._forward(model, batch)
        check_pair(batch)
        return model(batch[0])

    def settle(self, made: Any, batch: Any, rows: int) -> ShardLoss:
        """The loss of what `run` made."""
        return self._wrap(made, batch, rows) if self._forward is not None else self.of_outputs(made, batch, rows)

    def of_outputs(self, outputs: Any, batch: Any, rows: int) -> ShardLoss:
        """The loss of what the model made of (x, y) data."""
        if self._torch_loss is not None:
            value = check_scalar(self._torch_loss.total(outputs, batch[1]))
            weigh = self._torch_loss.weigh
            return ShardLoss(value, float(rows if weigh is None else weigh(batch[1])), is_mean=False)
        assert self._loss is not None
        return self._wrap(self._loss(outputs, batch[1]), batch, rows)

    def _wrap(self, result: Any, batch: Any, rows: int) -> ShardLoss:
        if isinstance(result, tuple | list) and len(result) == 2:
            return ShardLoss(check_scalar(result[0]), check_weight(result[1]), is_mean=False)
        value = check_scalar(result)
        place = ignored_label_in(batch)
        if place is not None:
            raise JobRefused(
                f"{place} holds labels of {IGNORED}, which losses leave out, and the loss returned is a plain mean: "
                "shards with different numbers of labels would be weighted wrongly; return (sum, weight) instead, "
                "for example (F.cross_entropy(logits, labels, reduction='sum'), (labels != -100).sum())"
            )
        return ShardLoss(value, float(rows), is_mean=True)


@dataclass(frozen=True)
class TorchLoss:
    """One of torch's own losses taken apart: the sum, and the weight that its mean divides by."""

    total: Callable[[Tensor, Tensor], Tensor]
    weigh: Callable[[Tensor], Tensor | float] | None  # None: reduction="sum", divided by nothing

    @staticmethod
    def recognise(loss: Callable[..., Any]) -> "TorchLoss | None":
        """None for a loss whose mean is a mean over rows, or that we do not know."""
        if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss):
            names = ["weight", "ignore_index", "reduction", "label_smoothing"]
            options = {name: getattr(loss, name) for name in names if hasattr(loss, name)}
            return _classification(F.cross_entropy if "label_smoothing" in options else F.nll_loss, options)
        function = loss.func if isinstance(loss, partial) else loss
        options = dict(loss.keywords) if isinstance(loss, partial) else {}
        if function in (F.cross_entropy, F.nll_loss) and not (isinstance(loss, partial) and loss.args):
            return _classification(function, options)
        of_torch = isinstance(loss, nn.Module) or getattr(F, getattr(function, "__name__", ""), None) is function
        if of_torch and options.get("reduction", getattr(loss, "reduction", None)) == "sum":
            return TorchLoss(loss, None)
        return None


def _classification(function: Callable[..., Tensor], options: dict[str, Any]) -> TorchLoss | None:
    reduction = options.pop("reduction", "mean")
    if reduction not in ("mean", "sum"):
        return None
    total = partial(function, reduction="sum", **options)
    if reduction == "sum":
        return TorchLoss(total, None)
    return TorchLoss(total, partial(_label_weight, options.get("weight"), options.get("ignore_index", IGNORED)))


def _label_weight(class_weights: Tensor | None, ignore_index: int, targets: Tensor) -> Tensor | float:
    """What torch's mean divides by: the labels that count, weighted by class."""
    if targets.is_floating_point():  # class probabilities: the mean is over positions
        return float(targets.numel() // targets.shape[1] if targets.dim() > 1 else 1)
    counted = targets != ignore_index
    if class_weights is None:
        return counted.sum()
    return class_weights[targets[counted]].double().sum()


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
