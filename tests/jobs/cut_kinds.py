"""Forwards that a record has to see through to be cut: one small job per kind, `job(case=...)`."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import samestep

ROWS, WIDTH = 24, 8


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Chain(nn.Module):
    """Four layers and a head; `around` is the Python between them."""

    def __init__(self, around: Callable[[Any, Any], Tensor], layer: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList((layer or (lambda: nn.Linear(WIDTH, WIDTH)))() for _ in range(4))
        self.head = nn.Linear(WIDTH, 3)
        self.around = around

    def forward(self, x: Any) -> Tensor:
        return self.head(self.around(self, x))


def straight(model: Chain, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = torch.tanh(layer(x))
    return x


# Batches


class Slots:
    __slots__ = ("labels", "x")

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels


class Plain:
    """Nested, with a cycle."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.inner = {"x": [x]}
        self.labels, self.owner = labels, self

    @property
    def x(self) -> Tensor:
        return self.inner["x"][0]


@dataclasses.dataclass(frozen=True)
class Record:
    x: Tensor
    labels: Tensor
    kind: str = "record"


class Encoding(collections.UserDict):  # type: ignore[type-arg]
    """As Hugging Face's tokenizers return them: items as attributes."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        super().__init__(x=x, labels=labels)

    def __getattr__(self, name: str) -> Any:
        if name not in ("x", "labels"):
            raise AttributeError(name)
        return self.data[name]


class Named(dict):  # type: ignore[type-arg]
    def __init__(self, x: Tensor, labels: Tensor) -> None:
        super().__init__(x=x)
        self.labels = labels

    @property
    def x(self) -> Tensor:
        return self["x"]  # type: ignore[no-any-return]


@dataclasses.dataclass
class Counted:
    """A name for every batch, which forward does not read, and a flag that it does."""

    x: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        self.name, self.even = f"rows of {self.labels.sum()} {self.x.sum()}", bool(self.labels.sum() % 2)


BATCHES: dict[str, Callable[..., Any]] = {
    "slots": Slots, "plain object": Plain, "dataclass": Record, "mapping": Encoding, "dict with attributes": Named,
    "plain values": Counted,
}  # fmt: skip


def of_batch(model: Any, batch: Any) -> Tensor:
    sign = -1.0 if getattr(batch, "even", False) else 1.0
    return F.cross_entropy(model(batch.x * sign), batch.labels)


# Tensors that leave a layer on another way than in its result


class Keeps(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.kept = y.square().mean()
        return torch.relu(y)


def kept_on_layers(model: Any, x: Tensor) -> Tensor:
    y = x
    for layer in model.layers:
        y = layer(y)
    return y * (1 + sum(layer.kept for layer in model.layers))


class KeepsInList(nn.Linear):
    def __init__(self, notes: list[Tensor]) -> None:
        super().__init__(WIDTH, WIDTH)
        self.notes = notes

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.notes.append(y.mean(0))
        return torch.tanh(y)


class SharesList(nn.Module):
    """Layers note in one list; a later layer, and the model, read it."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Tensor] = []
        self.layers = nn.ModuleList(KeepsInList(self.notes) for _ in range(3))
        self.reader, self.head = ReadsList(self.notes), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.notes.clear()
        for layer in self.layers:
            x = layer(x)
        return self.head(self.reader(x)) * self.notes[0].sum()


class ReadsList(nn.Linear):
    def __init__(self, notes: list[Tensor]) -> None:
        super().__init__(WIDTH, WIDTH)
        self.notes = notes

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.stack(self.notes).sum(0)


class Hooked(nn.Module):
    """A hook inside of a block keeps its activation, for a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)
        self.seen: dict[str, Tensor] = {}
        self.blocks[0][0].register_forward_hook(lambda _m, _i, out: self.seen.update(first=out))  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.seen["first"].mean()


# Changes in place


def doubles_the_batch(model: Any, x: Tensor) -> Tensor:
    x.mul_(2.0)
    y = model.layers[0](x)
    z = model.layers[1](y)
    return model.layers[3](model.layers[2](z)) + x


def halves_a_view(model: Any, x: Tensor) -> Tensor:
    y = model.layers[0](x)
    q = y.view(-1, 2, WIDTH // 2)
    k = model.layers[1](x).view(-1, 2, WIDTH // 2)
    q /= 2.0
    z = model.layers[2](torch.tanh(q + k).flatten(1))
    q += 1.0
    return model.layers[3](z) + y


# Modules with several uses


class Albert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = torch.tanh(self.block(x))
        return self.head(x)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.mix, self.head = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.encoder(x), self.encoder(x.flip(1))], 1)
        return self.head(torch.relu(self.mix(both)))


class Block(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.own = shared, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.own(torch.tanh(self.shared(x))))


class TwoParents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(WIDTH, WIDTH)
        self.blocks, self.head = nn.Sequential(*[Block(shared) for _ in range(3)]), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


# Ways


def asks_for_a_mask(model: Any, x: Tensor) -> Tensor:
    mask = x[:, :1] > -0.3
    if not mask.all():
        x = x * mask
    return straight(model, x)


def asks_for_an_activation(model: Any, x: Tensor) -> Tensor:
    y = torch.tanh(model.layers[0](x))
    y = torch.tanh(model.layers[1](y))
    if y.sum() > 0:
        y = -y
    y = torch.tanh(model.layers[2](y))
    return model.layers[3](y.abs() if y.mean().item() > 0.0 else y) if y[0, 0] > 0 else model.layers[3](y * 2)


def drops_layers(model: Any, x: Tensor) -> Tensor:
    for layer in model.layers:
        y = torch.dropout(torch.tanh(layer(x)), 0.1, model.training)
        if torch.rand(()) < 0.3:
            continue
        x = y
    return x


def leaves_out_a_layer(model: Any, x: Tensor) -> Tensor:
    for i, layer in enumerate(model.layers):
        if i == 3 and x.sum() > 0:
            continue
        x = torch.tanh(layer(x))
    return x


# Objects between layers


class Cache:
    def __init__(self) -> None:
        self.keys: list[Tensor] = []


class Attends(nn.Linear):
    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        cache.keys.append(super().forward(x))
        return torch.tanh(torch.stack(cache.keys).sum(0))


def with_a_cache(model: Any, x: Tensor) -> Tensor:
    cache = Cache()
    for layer in model.layers:
        x = layer(x, cache)
    return x + cache.keys[1]


@dataclasses.dataclass
class Output:
    hidden: Tensor
    attention: Tensor | None = None


class Returns(nn.Linear):
    def forward(self, x: Output) -> Output:
        y = super().forward(x.hidden)
        return Output(torch.tanh(y), y.softmax(1))


def with_objects(model: Any, x: Tensor) -> Tensor:
    out = Output(x)
    for layer in model.layers:
        out = layer(out)
    assert out.attention is not None
    return out.hidden + out.attention


def with_sparse(model: Any, x: Tensor) -> Tensor:
    edges = torch.stack([torch.arange(WIDTH), torch.arange(WIDTH).roll(1)])
    graph = torch.sparse_coo_tensor(edges, x[0].detach().abs(), (WIDTH, WIDTH), check_invariants=True)
    for layer in model.layers:
        x = torch.tanh(torch.sparse.mm(graph, layer(x).t()).t())
    return x


class Checkpointed(nn.Module):
    """A checkpoint inside of a single call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))


def around_checkpoints(model: Any, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = checkpoint(lambda h, layer=layer: torch.relu(layer(h)), x, use_reentrant=False)
    return x


class Spare(nn.Linear):
    """Has a parameter that forward does not use, beside those of a layer that may be sliced."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.inner, self.spare = nn.Linear(inputs, outputs), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "kept on layers": lambda: Chain(kept_on_layers, lambda: Keeps(WIDTH, WIDTH)),
    "kept in a shared list": SharesList,
    "kept by a hook": Hooked,
    "the batch in place": lambda: Chain(doubles_the_batch),
    "a view in place": lambda: Chain(halves_a_view),
    "one layer several times": Albert,
    "two inputs": Siamese,
    "two parents": TwoParents,
    "a mask": lambda: Chain(asks_for_a_mask),
    "an activation": lambda: Chain(asks_for_an_activation),
    "layers dropped": lambda: Chain(drops_layers),
    "a layer left out": lambda: Chain(leaves_out_a_layer),
    "a cache": lambda: Chain(with_a_cache, lambda: Attends(WIDTH, WIDTH)),
    "objects": lambda: Chain(with_objects, lambda: Returns(WIDTH, WIDTH)),
    "sparse": lambda: Chain(with_sparse),
    "spare parameters": lambda: Chain(straight, lambda: Spare(WIDTH, WIDTH)),
    "a checkpoint inside": lambda: Chain(straight, Checkpointed),
    "a checkpoint around": lambda: Chain(around_checkpoints, normed),
    "scripted": lambda: Chain(straight, lambda: torch.jit.trace(nn.Linear(WIDTH, WIDTH), torch.ones(2, WIDTH))),
}


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def job(case: str = "a mask") -> samestep.Job:
    x, labels = numbers(ROWS, WIDTH), torch.arange(ROWS) % 3
    sgd = lambda params: torch.optim.SGD(params, 0.05)  # noqa: E731
    given: dict[str, Any] = {"optimizer": sgd, "batch_size": 8, "shards": 4, "steps": 5}
    if case in BATCHES:
        collate = lambda rows: BATCHES[case](torch.stack([a for a, _ in rows]), torch.stack([b for _, b in rows]))  # noqa: E731
        data = list(zip(x, labels, strict=True))
        return samestep.Job(model=lambda: Chain(straight), forward=of_batch, data=data, collate_fn=collate, **given)
    return samestep.Job(model=MODELS[case], forward=cross_entropy, data=(x, labels), **given)
