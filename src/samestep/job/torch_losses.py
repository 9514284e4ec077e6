"""torch's own losses taken apart: the sum, and the weight that their mean divides by.

torch's cross-entropy with `ignore_index` or class weights is a mean over something else than rows, which its
targets show; weighting its shards by rows instead is wrong by half the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from samestep.job.loss_checks import IGNORED


@dataclass(frozen=True)
class TorchLoss:
    """The sum of one of torch's losses, and the weight that its mean divides by."""

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
    return TorchLoss(total, partial(_weight_of_labels, options.get("weight"), options.get("ignore_index", IGNORED)))


def _weight_of_labels(class_weights: Tensor | None, ignore_index: int, targets: Tensor) -> Tensor | float:
    """The divisor of torch's mean: the labels that count, weighted by class."""
    if targets.is_floating_point():  # class probabilities: the mean is over positions
        return float(targets.numel() // targets.shape[1] if targets.dim() > 1 else 1)
    counted = targets != ignore_index
    if class_weights is None:
        return counted.sum()
    return class_weights[targets[counted]].double().sum()
