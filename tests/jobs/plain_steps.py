"""Jobs whose first step is compared with a plain one: SGD, no clipping, no dropout, rows in their order."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import samestep
from jobs.transparent import CLASSES, GPT, Bag, Perceptron, fixed, images, penalised, per_token, smooth, words

ROWS, BATCH = 100, 30  # shards of three and four rows
LENGTH = 12


def job(**fields: Any) -> samestep.Job:
    common = {
        "data": images(),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": lambda params: optim.SGD(params, 0.5),
        "batch_size": BATCH,
        "shards": 8,
        "steps": 1,
        "shuffle": False,
    }
    return samestep.Job(**{**common, **fields})


def mlp() -> samestep.Job:
    return job(model=Perceptron)


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 20, bias=False),
            nn.BatchNorm1d(20),
            nn.ReLU(),
            nn.Linear(20, CLASSES),
        )


def cnn_sync() -> samestep.Job:
    return job(model=Convolutions, sync_batchnorm=True)


def cnn_without_sync() -> samestep.Job:
    return job(model=Convolutions)


def gpt() -> samestep.Job:
    text = words(11, 800)
    return job(model=lambda: GPT(dropout=0.0), data=(text[:, :-1], text[:, 1:]), loss=per_token)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(50, 12), nn.LSTM(12, 16, 2), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x.t()))[0][-1])


def lstm() -> samestep.Job:
    return job(model=Reader, data=(words(7, 50), images()[1]))


def embedding_bag() -> samestep.Job:
    return job(model=Bag, data=(words(6, 2000), images()[1]))


def regression() -> samestep.Job:
    x = images()[0]
    return job(model=Perceptron, data=(x, torch.randn(ROWS, CLASSES, generator=fixed())), loss=nn.MSELoss())


def summed() -> samestep.Job:
    return job(
        model=Perceptron, loss=nn.CrossEntropyLoss(reduction="sum"), optimizer=lambda params: optim.SGD(params, 0.02)
    )


def gradient_penalty() -> samestep.Job:
    return job(model=smooth, loss=None, forward=penalised)


# Very uneven weights: rows 0 to 7 have no label at all (two shards), others one, row 15 all twelve.


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(60, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """(rows, classes, places), as torch's losses want it."""
        return self.head(self.hidden(self.embedding(ids)).tanh()).transpose(1, 2)


def masked(ignored: int = -100) -> tuple[Tensor, Tensor]:
    ids = words(LENGTH, 60)
    lengths = torch.where(torch.arange(ROWS) < 8, 0, 1)
    lengths[15] = LENGTH
    return ids, torch.where(torch.arange(LENGTH) < lengths[:, None], ids % CLASSES, ignored)


def ignored_labels() -> samestep.Job:
    return job(model=Tagger, data=masked())


def ignored_class() -> samestep.Job:
    return job(model=Tagger, data=masked(ignored=3), loss=nn.CrossEntropyLoss(ignore_index=3, label_smoothing=0.1))


def class_weights() -> Tensor:
    return torch.linspace(0.01, 5.0, CLASSES)


def weighted_classes() -> samestep.Job:
    return job(model=Perceptron, loss=nn.CrossEntropyLoss(weight=class_weights()))


def weighted_and_ignored() -> samestep.Job:
    loss = nn.CrossEntropyLoss(weight=class_weights(), label_smoothing=0.2)
    return job(model=Tagger, data=masked(), loss=loss)


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(logits.log_softmax(1), targets, weight=class_weights())


def log_probabilities() -> samestep.Job:
    return job(model=lambda: nn.Sequential(Perceptron(), nn.LogSoftmax(1)), loss=nn.NLLLoss(weight=class_weights()))


def pair(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    labels = batch["labels"]
    return F.cross_entropy(model(batch["ids"]), labels, reduction="sum"), (labels != -100).sum()


def sum_and_weight() -> samestep.Job:
    ids, labels = masked()
    return job(model=Tagger, loss=None, forward=pair, data={"ids": ids, "labels": labels})


def importance(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Every row has a weight of its own, no whole number."""
    x, y, weights = batch
    return (F.cross_entropy(model(x), y, reduction="none") * weights).sum(), weights.sum()


def weighted_rows() -> samestep.Job:
    weights = torch.rand(ROWS, generator=fixed()) ** 8 * 7
    return job(model=Perceptron, loss=None, forward=importance, data=(*images(), weights))
