"""Jobs that write down what happened to them, and jobs that have been trained wrongly elsewhere."""

import os
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import Dataset

import samestep
from jobs.transparent import CLASSES, GPT, Perceptron, fixed, images, per_token, words


def sgd(lr: float, **options: Any) -> Any:
    return lambda params: optim.SGD(params, lr, **options)


# The log book: every row's datum is a power of two, so a step's loss tells which rows it was made of.


def log_of_rows(model: nn.Module, batch: tuple[Tensor]) -> tuple[Tensor, int]:
    return batch[0].sum() + 0.0 * model(batch[0]).sum(), len(batch[0])


class PowersOfTwo(Dataset[tuple[Tensor]]):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor]:
        return (torch.tensor([2.0**row], dtype=torch.float64),)


def log_book(rows: int = 40, batch_size: int = 16, loaders: int = 0, **fields: Any) -> samestep.Job:
    return samestep.Job(
        model=lambda: nn.Linear(1, 1).double(),
        forward=log_of_rows,
        optimizer=sgd(0.1),
        data=PowersOfTwo(rows),
        num_loader_workers=loaders,
        batch_size=batch_size,
        shards=4,
        epochs=4,
        **fields,
    )


# The ledger: row i's gradient falls on weight i alone, so the weights tell how much every row counted, and when.


def mean_output(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    return model(batch[0]).mean()


class Ledger(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.account = nn.Parameter(torch.zeros(rows))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.account


def ledger(rows: int = 100, batch_size: int = 32, shards: int = 8, decay: float = 1.0) -> samestep.Job:
    """Each step takes `lr` off the accounts, shared among the batch's rows; `lr` falls by `decay` per step."""
    return samestep.Job(
        model=lambda: Ledger(rows),
        forward=mean_output,
        optimizer=sgd(1.0),
        scheduler=lambda optimizer: lr_scheduler.ExponentialLR(optimizer, decay),
        data=torch.eye(rows),
        batch_size=batch_size,
        shards=shards,
        epochs=1,
    )


def masked_output(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Row i's gradient on account i is row i's dropout mask."""
    return F.dropout(batch[0] @ model.account, 0.5).sum(1).mean()


class WideLedger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.account = nn.Parameter(torch.zeros(32, 64))


def dropout_ledger(batch_size: int = 32) -> samestep.Job:
    return samestep.Job(
        model=WideLedger,
        forward=masked_output,
        optimizer=sgd(1.0),
        data=torch.eye(32),
        batch_size=batch_size,
        shards=8,
        epochs=1,
        shuffle=False,
    )


# Jobs that are compared with a plain loop.


def job(**fields: Any) -> samestep.Job:
    common = {"data": images(), "optimizer": sgd(0.1), "batch_size": 30, "shards": 8, "steps": 4, "shuffle": False}
    if "forward" not in fields:
        common["loss"] = nn.CrossEntropyLoss()
    return samestep.Job(**{**common, **fields})


def around_the_model(model: nn.Module, batch: Any) -> Tensor:
    """Calls the model's layers and never the model."""
    x = model[1].weight @ batch[0].flatten(1).t() + model[1].bias[:, None]
    return F.cross_entropy(model[3](model[2](x.t())), batch[1])


def bypassed() -> samestep.Job:
    return job(model=Perceptron, forward=around_the_model)


def clipped(max_norm: float = 0.05) -> samestep.Job:
    return job(model=Perceptron, clip_grad_norm=max_norm)


def momentum() -> samestep.Job:
    return job(
        model=Perceptron,
        optimizer=sgd(0.05, momentum=0.9),
        scheduler=lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5),
        steps=6,
    )


def tied() -> samestep.Job:
    text = words(11, 800)
    return job(
        model=lambda: GPT(dropout=0.0),
        data=(text[:, :-1], text[:, 1:]),
        loss=per_token,
        optimizer=lambda params: optim.AdamW(params, 1e-3, weight_decay=0.1),
    )


def whole_model() -> samestep.Job:
    """A model instead of a factory, as old as the job itself."""
    return job(model=Perceptron())


def unseeded() -> samestep.Job:
    """Initial weights and buffers that no seed decides."""

    def model() -> nn.Module:
        made = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, CLASSES))
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
        for tensor in (made[1].running_mean, made[2].weight.data):
            tensor.normal_(generator=generator)
        return made

    return job(model=model)


class Switching(nn.Module):
    """Two layers of one shape, in an order that the rows decide; a third one for some rows only, one for none."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 24)
        self.left, self.right, self.rare, self.unused = (nn.Linear(24, 24) for _ in range(4))
        self.leave = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.path(row) for row in self.enter(x.flatten(1)).split(1)]
        return self.leave(torch.cat(rows))

    def path(self, x: Tensor) -> Tensor:
        for layer in (self.left, self.right) if x.sum() > 0 else (self.right, self.left):
            x = layer(x).tanh()
        return self.rare(x) if x[0, 0] > 0.6 else x


def switching() -> samestep.Job:
    return job(model=Switching, optimizer=lambda params: optim.AdamW(params, 1e-2, weight_decay=0.5))


class Seldom(nn.Module):
    """`once` takes part in the first step only; `never` in none."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.once, self.never = nn.Linear(64, CLASSES), nn.Linear(64, CLASSES), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.body(x) + self.once(x) if int(number[0]) < 30 else self.body(x)


def numbered(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0], batch[2]), batch[1])


DECAYING = {
    "adamw": lambda params: optim.AdamW(params, 1e-2, weight_decay=0.5),
    "sgd": sgd(0.1, momentum=0.9, weight_decay=0.1),
}


def seldom(optimizer: str = "adamw") -> samestep.Job:
    return job(model=Seldom, forward=numbered, data=(*images(), torch.arange(100)), optimizer=DECAYING[optimizer])


# Buffers


class Counting(nn.Module):
    """Buffers assigned out of place; one of them is not in the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(64), nn.Linear(64, CLASSES)
        self.register_buffer("average", torch.zeros(64))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("scale", torch.tensor(1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.mean(0)
            self.calls = self.calls + 1
            self.scale = self.scale * 0.9
        return self.layer(self.norm(x) - self.average) * self.scale


def buffers() -> samestep.Job:
    return job(model=Counting, steps=6)


# Data


class Draws(Dataset[Tensor]):
    """Nothing but one random number per row."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> Tensor:
        draw = {"torch": lambda: torch.rand(()).item(), "random": random.random, "numpy": np.random.rand}
        return torch.tensor([draw[self.source]()], dtype=torch.float64)


def drawn(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
    return batch.sum() + 0.0 * model(batch).sum(), len(batch)


def draws(source: str, loaders: int = 0) -> samestep.Job:
    """Batches of one row: every loss is the random number of its row."""
    return samestep.Job(
        model=lambda: nn.Linear(1, 1).double(),
        forward=drawn,
        optimizer=sgd(0.1),
        data=Draws(source),
        num_loader_workers=loaders,
        batch_size=1,
        epochs=3,
    )


def poisoned(row: int = 70) -> samestep.Job:
    """One row is not a number; it comes in the third batch, in its third shard."""
    x, y = images()
    x[row] = float("nan")
    return job(model=Perceptron, data=(x, y), optimizer=lambda params: optim.Adam(params, 1e-3))


# Evaluation


def evaluated(shards: int = 8) -> samestep.Job:
    """37 rows held out, whose labels count very differently."""
    ids = words(12, 60)[:37]
    lengths = torch.randint(1, 12, (37,), generator=fixed())
    labels = torch.where(torch.arange(12) < lengths[:, None], ids % CLASSES, -100)
    return job(
        model=lambda: nn.Sequential(nn.Embedding(60, CLASSES), Turn()),
        data=(ids, labels),
        evaluate=(ids, labels),
        batch_size=32,
        shards=shards,
        steps=1,
        optimizer=sgd(1e-9),
    )


class Turn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def counted() -> samestep.Job:
    """The held-out targets tell the order of the rows."""
    x = images()[0]
    return job(
        model=Perceptron,
        evaluate=(x[:37], torch.arange(37) % CLASSES),
        metrics={
            "rows": samestep.Predictions(lambda outputs, targets: len(targets)),
            "in order": samestep.Predictions(
                lambda outputs, targets: float(torch.equal(targets, torch.arange(37) % CLASSES))
            ),
            "half": lambda outputs, targets: (len(targets), 2 * len(targets)),
        },
    )
