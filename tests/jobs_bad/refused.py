"""A small job that `fault` spoils in one way or another. Each fault changes some fields of a good job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, SparseAdam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import samestep

ROWS, FEATURES, CLASSES = 64, 6, 3


class Adding(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self[0].weight.add_(1e-3)
        return super().forward(x)


class Scaling(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        self[2].bias.data.mul_(0.999)
        return super().forward(x)


class FrozenMoving(nn.Sequential):
    """The last layer follows the first ones, as the teacher in self-distillation does."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self[2].weight.mul_(0.9)
        return super().forward(x)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.zeros(8, 2))


class Nothing(TensorDataset):
    def __init__(self) -> None:
        super().__init__(torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.int64))


def layers(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    return kind(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def frozen() -> nn.Module:
    return layers().requires_grad_(False)


def teacher() -> nn.Module:
    model = layers(FrozenMoving)
    model[2].requires_grad_(False)
    return model


def mean_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def spoiled(x: Tensor, y: Tensor) -> dict[str, Callable[[], dict[str, Any]]]:
    """The fields that each fault changes."""
    ignored = y.clone()
    ignored[::3] = -100
    embedding = nn.Embedding(CLASSES, 1, sparse=True)
    foreign = nn.Parameter(torch.zeros(3))

    def forward(function: Callable[[nn.Module, Any], Any]) -> Callable[[], dict[str, Any]]:
        return lambda: {"loss": None, "forward": function}

    def field(**changes: Any) -> Callable[[], dict[str, Any]]:
        return lambda: changes

    return {
        "none": field(),
        "too many shards": field(shards=17),
        "batch too large": field(batch_size=65),
        "no trainable parameter": field(model=frozen),
        "loss per row": field(loss=nn.CrossEntropyLoss(reduction="none")),
        "loss is text": forward(lambda model, batch: "low"),
        "loss of whole numbers": forward(lambda model, batch: batch[1].sum()),
        "loss is detached": forward(lambda model, batch: mean_of(model, batch).detach()),
        "weight is a tensor": forward(lambda model, batch: (mean_of(model, batch), model(batch[0]))),
        "weight is negative": forward(lambda model, batch: (mean_of(model, batch), -1)),
        "weight is nan": forward(lambda model, batch: (mean_of(model, batch), float("nan"))),
        "ignored labels, plain mean": lambda: {"data": (x, ignored), "loss": None, "forward": mean_of},
        "loss with parameters": field(loss=nn.Linear(3, 1)),
        "loss and forward": field(forward=mean_of),
        "neither loss nor forward": field(loss=None),
        "lbfgs": field(optimizer=LBFGS),
        "sparse adam": field(optimizer=SparseAdam),
        "optimizer is an optimizer": lambda: {"optimizer": SGD([foreign])},
        "optimizer is none": field(optimizer=lambda params: None),
        "foreign parameters": field(optimizer=lambda params: SGD([*params, foreign])),
        "only foreign parameters": field(optimizer=lambda params: SGD([foreign])),
        "state without plain form": field(optimizer=lambda params: SGD([{"params": params, "note": object()}])),
        "plateau scheduler": field(scheduler=ReduceLROnPlateau),
        "scheduler is none": field(scheduler=lambda optimizer: None),
        "scheduler is a number": field(scheduler=0.1),
        "lazy": field(model=lambda: nn.Sequential(nn.LazyLinear(CLASSES))),
        "sparse": field(model=lambda: nn.Sequential(embedding, nn.Flatten())),
        "adds in forward": field(model=lambda: layers(Adding)),
        "scales data in forward": field(model=lambda: layers(Scaling)),
        "moves a frozen one in forward": field(model=teacher),
        "model makes none": field(model=lambda: None),
        "model is text": field(model="resnet"),
        "data is a path": field(data="digits.csv"),
        "data is a stream": field(data=Stream()),
        "data is a loader": field(data=DataLoader(TensorDataset(x, y))),
        "data is a number": field(data=3),
        "data is ragged": field(data=(x, y[:-1])),
        "data holds a list": field(data=(x, y.tolist())),
        "data is a dict of lists": field(data={"x": x.tolist()}),
        "data has a number": field(data=(x, torch.tensor(1))),
        "data is empty": field(data=(x[:0], y[:0])),
        "data set is empty": field(data=Nothing()),
        "one column": field(data=x),
        "three columns": field(data=(x, y, y)),
        "named columns for loss": field(data={"x": x, "y": y}),
        "collate of tensors": field(collate_fn=list),
        "evaluate is ragged": field(evaluate=(x, y[:-1])),
        "evaluate is empty": field(evaluate=(x[:0], y[:0])),
        "evaluate is a path": field(evaluate="held-out.csv"),
        "metrics is a function": field(metrics=samestep.accuracy),
        "metric is text": field(metrics={"accuracy": "accuracy"}),
        "metric called loss": field(metrics={"loss": samestep.accuracy}),
        "metric is no pair": field(evaluate=(x, y), metrics={"best": lambda outputs, targets: 0.5}),
        "metric of tensors": field(evaluate=(x, y), metrics={"best": lambda outputs, targets: (outputs, targets)}),
        "predictions make text": field(
            evaluate=(x, y), metrics={"auc": samestep.Predictions(lambda outputs, targets: "high")}
        ),
        "callback is text": field(callbacks=["print"]),
        "callbacks is a function": field(callbacks=print),
        "batch size is text": field(batch_size="16"),
        "batch size is zero": field(batch_size=0),
        "batch size is a float": field(batch_size=16.0),
        "steps is negative": field(steps=-1),
        "epochs is zero": field(steps=None, epochs=0),
        "seed is text": field(seed="zero"),
        "seed is negative": field(seed=-1),
        "shards is true": field(shards=True),
        "loaders are negative": field(num_loader_workers=-1),
        "shuffle is text": field(shuffle="yes"),
        "precision is unknown": field(precision="float8"),
        "clip is zero": field(clip_grad_norm=0.0),
        "clip is text": field(clip_grad_norm="1"),
        "collate is text": field(data=TensorDataset(x, y), collate_fn="default"),
        "data is text": field(data=np.array(["a", "b"])),
    }


def job(fault: str = "none", lr: float = 0.1, hidden: bool = True) -> samestep.Job:
    x, y = torch.randn(ROWS, FEATURES), torch.randint(0, CLASSES, (ROWS,))
    if fault == "sparse":
        x = y[:, None]
    fields: dict[str, Any] = {
        "model": layers,
        "loss": nn.CrossEntropyLoss(),
        "optimizer": lambda params: SGD(params, lr),
        "data": (x, y),
        "batch_size": 16,
        "shards": 4,
        "steps": 2,
    }
    return samestep.Job(**{**fields, **spoiled(x, y)[fault]()})


def other(kind: str) -> samestep.Job:
    """The good job, but for one thing that a checkpoint of it does not go on with."""
    x, y = torch.randn(ROWS, FEATURES), torch.randint(0, CLASSES, (ROWS,))
    model: Callable[[], nn.Module] = layers
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = lambda params: SGD(params, 0.1)  # noqa: E731
    scheduler = None
    match kind:
        case "wider":
            model = lambda: nn.Sequential(nn.Linear(FEATURES, 9), nn.ReLU(), nn.Linear(9, CLASSES))  # noqa: E731
        case "frozen":
            model = lambda: freeze_first(layers())  # noqa: E731
        case "buffer":
            model = lambda: nn.Sequential(*layers(), nn.BatchNorm1d(CLASSES, affine=False))  # noqa: E731
        case "adam":
            optimizer = Adam
        case "groups":
            optimizer = lambda params: SGD([{"params": params[:2]}, {"params": params[2:]}], 0.1)  # noqa: E731
        case "scheduler":
            scheduler = lambda optimizer: StepLR(optimizer, 3)  # noqa: E731
        case "rows":
            x, y = x[:48], y[:48]
    return samestep.Job(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=scheduler,
        data=(x, y),
        batch_size=8 if kind == "batch" else 16,
        shuffle=kind != "order",
        shards=4,
        steps=4,
    )


def freeze_first(model: nn.Sequential) -> nn.Sequential:
    model[0].requires_grad_(False)
    return model


def typed(  # type: ignore[no-untyped-def]
    number=1,
    rate: float | None = None,
    flag: bool = False,
    mode: Literal["sum", "mean"] = "mean",
    sizes: list[int] | None = None,
    needed: str = "",
    free=None,
    anything: Any = 0,
    either: int | str = 0,
    where: Path = Path(),
) -> samestep.Job:
    for name, value in list(locals().items()):
        print(f"{name} = {value!r}")
    return job()


def needs(path: str) -> samestep.Job:
    return job()


def returns_nothing() -> None:
    job()


not_a_function = 3
