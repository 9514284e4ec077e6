"""Metrics of an evaluation: sums over rows, or functions of all predictions in row order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SumCount = tuple[Any, Any]


@dataclass(frozen=True)
class Predictions:
    """A metric that needs all rows at once, such as an AUC: `function(outputs, targets)` gets them in
    row order, each row exactly once, and returns a number. Outputs have one tensor per row."""

    function: Callable[[Tensor, Tensor], Any]


Metric = Callable[..., SumCount] | Predictions
"""`metric(outputs, targets) -> (sum, count)` for (x, y) data; `metric(model, batch) -> (sum, count)`
for jobs with a `forward` of their own."""


def accuracy(outputs: Tensor, targets: Tensor) -> SumCount:
    """Share of right classes. outputs: (rows, classes, ...), targets: (rows, ...) of class numbers;
    negative targets do not count."""
    counted = targets >= 0
    right = (outputs.argmax(1) == targets) & counted
    return right.sum(), counted.sum()


def is_classification(loss: Any) -> bool:
    return isinstance(loss, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss)
