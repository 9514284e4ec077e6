"""A shard's loss and its weight, so that shards of any size add up to the batch's loss exactly.

    L = Σ_s value_s / Σ_s weight_s        value: sum over a shard's rows (or tokens), weight: their count

A mean over rows has weight n_s. For torch's losses that are means over something else, `torch_losses.py` knows the
weight; a weight that only forward can know is returned by it, as (sum, weight).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samestep.errors import Disagreement, LossNotFinite
from samestep.job.loss_checks import check_no_label_is_ignored, check_one_given, check_pair, check_scalar, check_weight
from samestep.job.torch_losses import TorchLoss
from samestep.numerics.reduction_tree import tree_sum

LossFacts = tuple[float, float, bool]  # a shard's loss sum, its weight, whether it was a mean


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

    @property
    def facts(self) -> LossFacts:
        """The numbers that other workers need of it."""
        return self.sum, self.weight, self.is_mean

    def seed(self, batch_rows: int) -> float:
        """The start of backward: dL/d(objective) if the batch's weight were its number of rows.

        For a mean it is. For a sum it is known only when every shard has been through forward; what
        the division by `batch_rows` then got wrong is one factor for the whole gradient.
        """
        return (self.weight if self.is_mean else 1.0) / batch_rows


class Objective:
    """The job's loss, as a function of (model, batch) with exact weights."""

    def __init__(self, loss: Callable[..., Any] | None, forward: Callable[..., Any] | None) -> None:
        check_one_given(loss, forward)
        self._forward, self._loss = forward, loss
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
        """The model's outputs for a batch, or what the job's own forward returns."""
        if self._forward is not None:
            return self._forward(model, batch)
        check_pair(batch)
        return model(batch[0])

    def settle(self, made: Any, batch: Any, rows: int) -> ShardLoss:
        """The loss of what `run` made."""
        return self._wrap(made, batch, rows) if self._forward is not None else self.of_outputs(made, batch, rows)

    def of_outputs(self, outputs: Any, batch: Any, rows: int) -> ShardLoss:
        """The loss of the model's outputs for (x, y) data."""
        if self._torch_loss is not None:
            value = check_scalar(self._torch_loss.total(outputs, batch[1]))
            weigh = self._torch_loss.weigh
            return ShardLoss(value, float(rows if weigh is None else weigh(batch[1])), is_mean=False)
        assert self._loss is not None
        return self._wrap(self._loss(outputs, batch[1]), batch, rows)

    def seeded(self, loss: ShardLoss, batch_rows: int) -> Tensor:
        """A shard's objective times its share of the batch's.

        The product's gradient is the seed, to the bit. Given to backward() it costs torch an import of sympy.
        """
        seed = 1.0 if self.is_plain_sum else loss.seed(batch_rows)
        return loss.objective * torch.tensor(seed, dtype=loss.objective.dtype)

    def batch_loss(self, facts: Sequence[LossFacts], batch_rows: int, *, allow_nan: bool) -> tuple[float, float]:
        """The batch's loss from the facts of its shards, in order, and the factor that the summed gradient lacks."""
        kinds = {bool(is_mean) for _, _, is_mean in facts}
        if len(kinds) > 1:
            raise Disagreement("some shards returned a mean loss and others a (sum, weight) pair: return one of them")
        weight = 1.0 if self.is_plain_sum else tree_sum([weight for _, weight, _ in facts])
        total = tree_sum([value for value, _, _ in facts])
        if weight == 0.0 and not allow_nan:
            raise LossNotFinite(
                "the loss weights of all shards are 0: no row of this batch counts; --allow-nan goes on"
            )
        if weight == 0.0:
            return math.nan, math.nan if kinds == {False} else 1.0
        return total / weight, 1.0 if self.is_plain_sum else batch_rows / weight  # of a mean: 1, if no row was left out

    def _wrap(self, result: Any, batch: Any, rows: int) -> ShardLoss:
        if isinstance(result, tuple | list) and len(result) == 2:
            return ShardLoss(check_scalar(result[0]), check_weight(result[1]), is_mean=False)
        value = check_scalar(result)
        check_no_label_is_ignored(batch)
        return ShardLoss(value, float(rows), is_mean=True)
