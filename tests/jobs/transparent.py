"""Jobs of every kind that must not tell one worker from eight: 20 steps, five epochs, each with a short last batch."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import Dataset

import samestep

ROWS, BATCH, SHARDS, STEPS = 100, 32, 8, 20  # three whole batches per epoch and one of four rows, which is two shards
CLASSES = 10


def fixed() -> torch.Generator:
    """The data are the same whatever the seed of the run."""
    return torch.Generator().manual_seed(1)


def images(side: int = 8) -> tuple[Tensor, Tensor]:
    generator = fixed()
    return torch.randn(ROWS, 1, side, side, generator=generator), torch.randint(
        0, CLASSES, (ROWS,), generator=generator
    )


def words(length: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (ROWS, length), generator=fixed())


def job(**fields: Any) -> samestep.Job:
    common = {"batch_size": BATCH, "shards": SHARDS, "steps": STEPS, "loss": nn.CrossEntropyLoss()}
    return samestep.Job(**{**common, **fields})


class Perceptron(nn.Sequential):
    """Its first weight has 49,152 elements, so that updates are cut inside a parameter."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 768), nn.ReLU(), nn.Linear(768, CLASSES))


def mlp(lr: float = 0.05) -> samestep.Job:
    return job(
        model=Perceptron,
        data=images(),
        optimizer=lambda params: optim.SGD(params, lr, momentum=0.9, fused=True),
        scheduler=lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
        clip_grad_norm=0.5,
    )


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.2),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32, CLASSES),
    )


def cnn(sync: bool = False) -> samestep.Job:
    return job(
        model=convolutions,
        data=images(),
        optimizer=lambda params: optim.SGD(params, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        sync_batchnorm=sync,
    )


def cnn_sync() -> samestep.Job:
    return cnn(sync=True)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    """The token embedding (38,400 elements) is also the head."""

    def __init__(self, dropout: float = 0.1, vocabulary: int = 800, width: int = 48, length: int = 10) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, 4, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.tokens(tokens) + self.places.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def per_token(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def decay_matrices(params: list[nn.Parameter]) -> optim.Optimizer:
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return optim.AdamW(groups, lr=3e-3, fused=True)


def warm_up_and_fall(optimizer: optim.Optimizer) -> lr_scheduler.LRScheduler:
    rise = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 5)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[5])


def gpt(precision: str = "float32") -> samestep.Job:
    text = words(11, 800)
    return job(
        model=GPT,
        data=(text[:, :-1], text[:, 1:]),
        loss=per_token,
        optimizer=decay_matrices,
        scheduler=warm_up_and_fall,
        clip_grad_norm=1.0,
        precision=precision,
    )


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12, padding_idx=0)
        self.lstm = nn.LSTM(12, 16, num_layers=2, batch_first=True, dropout=0.2, bidirectional=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0].mean(1))


def lstm() -> samestep.Job:
    return job(
        model=Reader,
        data=(words(7, 50), images()[1]),
        optimizer=lambda params: optim.Adam(params, 1e-2),
        clip_grad_norm=0.3,
    )


class Bag(nn.Module):
    """A table of 40,000 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(2000, 20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


def embedding_bag() -> samestep.Job:
    return job(
        model=Bag,
        data=(words(6, 2000), images()[1]),
        optimizer=lambda params: optim.Adagrad(params, 0.1, lr_decay=0.01),
    )


class Tagger(nn.Module):
    """Hugging Face style: named inputs, and a loss over the labels that are not -100."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0))


def sum_over_labels(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = model(batch["input_ids"], batch["attention_mask"]).flatten(0, 1)
    labels = batch["labels"].flatten()
    return F.cross_entropy(logits, labels, reduction="sum"), (labels != -100).sum()


def dict_batches() -> samestep.Job:
    lengths = torch.randint(1, 9, (ROWS,), generator=fixed())
    mask = (torch.arange(8) < lengths[:, None]).long()
    ids = words(8, 60) * mask
    return job(
        model=Tagger,
        loss=None,
        forward=sum_over_labels,
        data={"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask > 0, ids % CLASSES, -100)},
        optimizer=lambda params: optim.AdamW(params, 1e-2, amsgrad=True),
    )


class Augmented(Dataset[tuple[Tensor, int]]):
    """Noise by torch, flips by random, shifts by NumPy."""

    def __init__(self) -> None:
        self.images, self.labels = images()

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = self.images[row] + 0.1 * torch.randn(1, 8, 8)
        if random.random() < 0.5:
            image = image.flip(-1)
        return image.roll(int(np.random.randint(-2, 3)), -1), int(self.labels[row])


def augmentation(loaders: int = 0) -> samestep.Job:
    return job(
        model=convolutions,
        data=Augmented(),
        num_loader_workers=loaders,
        optimizer=lambda params: optim.RMSprop(params, 1e-3, momentum=0.9),
    )


def augmentation_2_loaders() -> samestep.Job:
    return augmentation(loaders=2)


# Variants: one thing each that a step may contain.


class Lars(optim.Optimizer):
    """Scales the step of a parameter by its norms, so a parameter must not be cut."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    trust = float(param.norm() / (param.grad.norm() + 1e-8))
                    self.state[param]["trust"] = trust
                    param.sub_(param.grad, alpha=group["lr"] * trust)


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda params: optim.SGD(params, 0.05),
    "sgd foreach": lambda params: optim.SGD(params, 0.05, momentum=0.9, dampening=0.1, foreach=True),
    "sgd fused": lambda params: optim.SGD(params, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True),
    "adam": lambda params: optim.Adam(params, 1e-3, weight_decay=0.01),
    "adam fused": lambda params: optim.Adam(params, 1e-3, amsgrad=True, fused=True),
    "adamw": lambda params: optim.AdamW(params, 1e-3),
    "adamw foreach": lambda params: optim.AdamW(params, 1e-3, foreach=True),
    "adamax": lambda params: optim.Adamax(params, 1e-3),
    "nadam": lambda params: optim.NAdam(params, 1e-3),
    "radam": lambda params: optim.RAdam(params, 1e-3),
    "adagrad": lambda params: optim.Adagrad(params, 1e-2, initial_accumulator_value=0.1),
    "adagrad fused": lambda params: optim.Adagrad(params, 1e-2, fused=True),
    "adadelta": lambda params: optim.Adadelta(params),
    "rmsprop centered": lambda params: optim.RMSprop(params, 1e-3, centered=True, momentum=0.5),
    "rprop": lambda params: optim.Rprop(params, 1e-3),
    "asgd": lambda params: optim.ASGD(params, 1e-2, t0=2),
    "adafactor": lambda params: optim.Adafactor(params),
    "muon": lambda params: optim.Muon([p for p in params if p.ndim == 2], 1e-2),
    "lars": lambda params: Lars(params, 1e-2),
}


def with_optimizer(name: str) -> samestep.Job:
    return job(model=Perceptron, data=images(), optimizer=OPTIMIZERS[name], clip_grad_norm=1.0, steps=6)


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 3),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [2, 9, 9, 14]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "sequence": warm_up_and_fall,
    "chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def with_scheduler(name: str) -> samestep.Job:
    return job(
        model=Perceptron,
        data=images(),
        optimizer=lambda params: optim.SGD(params, 0.05, momentum=0.9),
        scheduler=SCHEDULERS[name],
    )


def adamw_cycle() -> samestep.Job:
    """The schedule moves the betas, a tuple, too."""
    return job(
        model=Perceptron,
        data=images(),
        optimizer=lambda params: optim.AdamW(params, 0.01),
        scheduler=lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=STEPS),
    )


def odd_sizes() -> samestep.Job:
    """Parameters whose number of elements is divided by no vector length, nor by two threads."""
    layers = [nn.Flatten(), nn.Linear(64, 1031), nn.Tanh(), nn.Linear(1031, 67), nn.SiLU(), nn.Linear(67, CLASSES)]
    return job(
        model=nn.Sequential(*layers),
        data=images(),
        optimizer=lambda params: optim.AdamW(params, 1e-3),
        clip_grad_norm=0.5,
    )


def in_place() -> samestep.Job:
    """A Linear's output is changed in place twice. ReLU last: its gradient reads its result (torchvision's VGG)."""
    layers = [
        nn.Flatten(),
        nn.Linear(64, 40),
        nn.Dropout(0.2, inplace=True),
        nn.ReLU(inplace=True),
        nn.Linear(40, CLASSES),
    ]
    return job(model=nn.Sequential(*layers), data=images(), optimizer=lambda params: optim.SGD(params, 0.05))


class Mixed(nn.Module):
    """Double and single precision, a scalar parameter, frozen ones, a transposed weight, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3).to(memory_format=torch.channels_last)
        self.frozen = nn.Linear(288, 40).requires_grad_(False)
        self.turned = nn.Parameter(torch.randn(50, 40).t() * 0.1)
        self.last = nn.Linear(50, CLASSES, dtype=torch.float64)
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.conv(x.contiguous(memory_format=torch.channels_last)).flatten(1).relu())
        return self.last((x @ self.turned).double()) * self.temperature.exp()


def mixed() -> samestep.Job:
    return job(model=Mixed, data=images(), optimizer=lambda params: optim.Adam(params, 1e-2), clip_grad_norm=1.0)


class Recomputing(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(64, 40), nn.Linear(40, CLASSES)
        self.middle = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        x = torch.utils.checkpoint.checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.last(x)


def recomputation(reentrant: bool) -> samestep.Job:
    return job(
        model=lambda: Recomputing(reentrant), data=images(), optimizer=lambda params: optim.SGD(params, 0.1, 0.9)
    )


def spectral() -> samestep.Job:
    """Parametrised weights with buffers that forward changes."""
    normed = nn.utils.parametrizations
    return job(
        model=lambda: nn.Sequential(
            nn.Flatten(),
            normed.spectral_norm(nn.Linear(64, 32)),
            nn.ReLU(),
            normed.weight_norm(nn.Linear(32, CLASSES)),
        ),
        data=images(),
        optimizer=lambda params: optim.SGD(params, 0.1),
    )


def attacked(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Adversarial training (FGSM): forward takes a gradient by the input first."""
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), batch[1]), x)
    return F.cross_entropy(model(batch[0] + 0.05 * slope.sign()), batch[1])


def penalised(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A gradient penalty: backward goes through a backward."""
    x = batch[0].clone().requires_grad_()
    losses = F.cross_entropy(model(x), batch[1], reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return (losses + slope.square().flatten(1).sum(1)).mean()


def smooth() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, CLASSES))


def adversarial() -> samestep.Job:
    return job(
        model=smooth, data=images(), loss=None, forward=attacked, optimizer=lambda params: optim.SGD(params, 0.1)
    )


def gradient_penalty() -> samestep.Job:
    return job(
        model=smooth, data=images(), loss=None, forward=penalised, optimizer=lambda params: optim.SGD(params, 0.1)
    )


class Repeating(nn.Module):
    """One layer used three times, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 32)
        self.again = nn.Linear(32, 32)
        self.also = self.again
        self.leave = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1)).tanh()
        return self.leave(self.also(self.again(self.again(x).tanh()).tanh()).tanh())


def repeated_layer() -> samestep.Job:
    return job(model=Repeating, data=images(), optimizer=lambda params: optim.SGD(params, 0.1, momentum=0.9))


def few_rows(loaders: int = 0) -> samestep.Job:
    """Batches of four rows, which are two shards at most: most workers never have any."""
    return job(
        model=convolutions,
        data=Augmented(),
        num_loader_workers=loaders,
        batch_size=9,
        steps=6,
        optimizer=lambda params: optim.SGD(params, 0.01),
    )


def evaluated(held_out: bool) -> samestep.Job:
    x, y = images()
    return job(
        model=convolutions,
        data=(x, y),
        optimizer=lambda params: optim.Adam(params, 1e-3),
        evaluate=(x[:37], y[:37]) if held_out else None,
    )


def by_epochs(drop_last: bool = False, shuffle: bool = True) -> samestep.Job:
    return job(
        model=Perceptron,
        data=images(),
        optimizer=lambda params: optim.SGD(params, 0.05),
        steps=None,
        epochs=3,
        drop_last=drop_last,
        shuffle=shuffle,
    )
