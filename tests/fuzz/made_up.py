"""Made-up networks: random programs of layers, with the liberties that people's models take.

A network is drawn from its seed alone. Its values are rows of 8 numbers, sequences ("words", 4 x 8) and images
("pixels", 3 x 6 x 6). A block has layers and operations, and hands on what it has made in one form or another.
"""

import random
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import samestep

ROWS, BATCH, SHARDS, STEPS = 24, 12, 3, 2
WIDTH, LENGTH, CLASSES = 8, 4, 3

Values = dict[str, list[Any]]
Op = Callable[["Block", Values], None]


# ------------------------------------------------------------------------------------------------- forms of a batch


@dataclass
class Record:
    x: Tensor
    words: Tensor
    pixels: Tensor
    ids: Tensor
    y: Tensor


class Pair(NamedTuple):
    inputs: dict[str, Tensor]
    y: Tensor


class Table(UserDict[str, Any]):
    pass


class Plain:
    def __init__(self, **columns: Any) -> None:
        vars(self).update(columns)


class Slotted:
    __slots__ = ("inside", "note")

    def __init__(self, inside: list[Any], note: str) -> None:
        self.inside, self.note = inside, note


NAMES = ("x", "words", "pixels", "ids", "y")
FORMS: dict[str, tuple[Callable[[list[Tensor]], Any], Callable[[Any], list[Tensor]]]] = {
    "tuple": (tuple, list),
    "dict": (lambda c: dict(zip(NAMES, c, strict=True)), lambda b: [b[name] for name in NAMES]),
    "record": (lambda c: Record(*c), lambda b: [getattr(b, name) for name in NAMES]),
    "pair": (lambda c: Pair(dict(zip(NAMES[:4], c, strict=False)), c[4]), lambda b: [*b.inputs.values(), b.y]),
    "table": (lambda c: Table(zip(NAMES, c, strict=True)), lambda b: [b[name] for name in NAMES]),
    "plain": (lambda c: Plain(**dict(zip(NAMES, c, strict=True))), lambda b: [getattr(b, name) for name in NAMES]),
    "slotted": (
        lambda c: Slotted([Plain(**dict(zip(NAMES, c, strict=True))), {"more": c[0] * 2}], "noted"),
        lambda b: [getattr(b.inside[0], name) for name in NAMES],
    ),
}
"""By name: how the columns become a batch, and how forward reads them."""


# ------------------------------------------------------------------------------------------------------ layers, ops


class Double(torch.autograd.Function):
    """Twice its input, and another gradient than that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 1.5


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * torch.sigmoid(self.b(x))


class Moving(nn.Module):
    """Keeps a running mean in a buffer: changed in place, or bound anew."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().flatten(0, -2).mean(0)
        if self.in_place:
            self.mean.mul_(0.9).add_(now, alpha=0.1)
        else:
            self.mean = 0.9 * self.mean + 0.1 * now
        return x - self.mean


class Keeping(nn.Module):
    """Leaves a value on itself."""

    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        self.layer, self.detached = nn.Linear(WIDTH, WIDTH), detached

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        self.kept = h.detach().square().mean() if self.detached else h.square().mean()
        return torch.tanh(h)


class Counting(nn.Module):
    """Counts its calls, and remembers what it saw; neither changes a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.seen = nn.Linear(WIDTH, WIDTH), 0, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = [*self.seen[-2:], x.detach()]
        return torch.relu(self.layer(x))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(*part.shape[:-1], 2, WIDTH // 2).transpose(1, 2)
            for part in (self.q(x), *self.kv(x).chunk(2, -1))
        )
        q /= 2.0
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


LAYERS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "rows": {
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "wide": lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(inplace=True), nn.Linear(16, WIDTH)),
        "bare": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
        "norm": lambda: nn.LayerNorm(WIDTH),
        "batch norm": lambda: nn.BatchNorm1d(WIDTH),
        "gated": Gated,
        "prelu": nn.PReLU,
        "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        "moving": lambda: Moving(in_place=True),
        "bound anew": lambda: Moving(in_place=False),
        "keeping": lambda: Keeping(detached=False),
        "keeping detached": lambda: Keeping(detached=True),
        "counting": Counting,
        "dropout": lambda: nn.Dropout(0.2),
        "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
    },
    "words": {
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "norm": lambda: nn.LayerNorm(WIDTH),
        "lstm": lambda: Recurrent(nn.LSTM),
        "gru": lambda: Recurrent(nn.GRU),
        "attention": Attention,
        "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True),
        "gated": Gated,
        "keeping": lambda: Keeping(detached=False),
        "moving": lambda: Moving(in_place=True),
        "dropout": lambda: nn.Dropout(0.2),
    },
    "pixels": {
        "conv": lambda: nn.Conv2d(3, 3, 3, padding=1),
        "depthwise": lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3),
        "batch norm": lambda: nn.BatchNorm2d(3),
        "group norm": lambda: nn.GroupNorm(3, 3),
        "block": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 3, 3, padding=1)),
        "pool": lambda: nn.AvgPool2d(3, 1, 1),
    },
}

PURE: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "any": {
        "tanh": torch.tanh,
        "gelu": F.gelu,
        "softmax": lambda x: torch.softmax(x, -1),
        "scaled": lambda x: x * 1.5 - 0.1,
        "double": lambda x: Double.apply(x),
        "clamped": lambda x: x.clamp(-2, 2),
        "rolled": lambda x: x.roll(1, -1),
        "cumsum": lambda x: x.cumsum(-1) / 4,
        "sorted": lambda x: x.sort(-1).values,
        "noise": lambda x: x + 0.1 * torch.randn_like(x),
        "masked": lambda x: x.masked_fill(x > 1, 0.5),
        "chunked": lambda x: torch.cat([part.contiguous() for part in reversed(x.chunk(2, -1))], -1),
        "split": lambda x: torch.cat(torch.tensor_split(x, 2, -1)[::-1], -1),
        "normed": lambda x: F.normalize(x, dim=-1),
        "detached": lambda x: x + x.detach().mean(),
        "clone": lambda x: x.clone(),
        "einsum": lambda x: torch.einsum("...a,...b->...a", x, torch.softmax(x, -1)),
        "no grad": lambda x: x * _without_grad(x),
        "of a constant": lambda x: x * CONSTANT,
        "vmapped": lambda x: torch.vmap(lambda row: row * row.mean())(x),
    },
    "in place": {
        "relu_": lambda x: torch.relu_(x + 0),
        "added": lambda x: (x + 0).add_(0.1),
        "view": lambda x: _changed_through_a_view(x + 0),
        "column": lambda x: _with_a_column(x * 1),
        "of x": lambda x: x.mul_(0.9),
        "view of x": lambda x: _changed_through_a_view(x),
    },
}

CONSTANT = torch.linspace(0.5, 1.5, 1)
"""A tensor that no batch brings and no module holds."""


def _without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.sigmoid(x).mean(-1, keepdim=True)


def _changed_through_a_view(x: Tensor) -> Tensor:
    view = x.view(len(x), -1)
    view *= 0.9
    return x


def _with_a_column(x: Tensor) -> Tensor:
    x[..., 0] = 0.5
    return x


# ---------------------------------------------------------------------------------------------------------- networks


class Block(nn.Module):
    """Layers, operations on values in their order, and the form in which its values go on."""

    def __init__(self, program: "Program") -> None:
        super().__init__()
        self.layers, self.program, self.is_calm = nn.ModuleDict(), program, False
        self.scale = nn.Parameter(torch.ones(1)) if program.scales else None

    def forward(self, given: Any) -> Any:
        values = opened(given, self.program.takes)
        for operation in self.program.operations:
            operation(self, values)
        if self.scale is not None:
            values["rows"][-1] = values["rows"][-1] * self.scale
        return packed({kind: found[-2:] for kind, found in values.items()}, self.program.gives)


class Hidden:
    """Values between blocks, as an object."""

    def __init__(self, values: Values) -> None:
        self.rows, self.words, self.pixels, self.ids = (values[kind] for kind in KINDS)


KINDS = ("rows", "words", "pixels", "ids")


def packed(values: Values, form: str) -> Any:
    if form == "dict":
        return values
    if form == "tuple":
        return tuple(tuple(values[kind]) for kind in KINDS)
    return Hidden(values)


def opened(given: Any, form: str) -> Values:
    if form == "dict":
        return {kind: list(given[kind]) for kind in KINDS}
    if form == "tuple":
        return {kind: list(part) for kind, part in zip(KINDS, given, strict=True)}
    return {kind: list(getattr(given, kind)) for kind in KINDS}


@dataclass
class Program:
    """What a block does. calls: how often the network calls it in turn."""

    takes: str
    gives: str
    scales: bool
    operations: list[Op] = field(default_factory=list)
    checkpointed: bool = False


class Network(nn.Module):
    def __init__(self, design: "Design") -> None:
        super().__init__()
        self.design = design
        self.tokens, self.head = nn.Embedding(10, WIDTH), nn.Linear(2 * WIDTH + 3, CLASSES)
        self.blocks = nn.ModuleList(Block(program) for program in design.programs)
        for block, name, make, _ in design.layers:
            self.blocks[block].layers[name] = make()
        for block, name, other, theirs in design.shared:
            self.blocks[block].layers[name] = self.blocks[other].layers[theirs]
        if design.ties:
            a, b = design.ties
            self.blocks[a[0]].layers[a[1]].weight = self.blocks[b[0]].layers[b[1]].weight
        self.aux: list[Tensor] = []

    def forward(self, batch: Any) -> Tensor:
        x, words, pixels, ids, _ = FORMS[self.design.form][1](batch)
        self.aux = []
        state = packed(
            {"rows": [x], "words": [words + self.tokens(ids)], "pixels": [pixels], "ids": [ids]}, self.design.first
        )
        for number in self.design.order:
            block = self.blocks[number]
            if block.program.checkpointed:  # noqa: SIM108 - as people write it
                state = checkpoint(block, state, use_reentrant=False)
            else:
                state = block(state)
            if number in self.design.reported:
                self.aux.append(opened(state, block.program.gives)["rows"][-1].square().mean())
        values = opened(state, self.blocks[self.design.order[-1]].program.gives)
        ends = [values["rows"][-1], values["words"][-1].mean(1), values["pixels"][-1].mean((2, 3))]
        return self.head(torch.cat(ends, 1))


@dataclass
class Design:
    """All that is drawn of a network; modules are made from it, with torch's own random numbers."""

    seed: int
    form: str = "tuple"
    first: str = "dict"
    programs: list[Program] = field(default_factory=list)
    layers: list[tuple[int, str, Callable[[], nn.Module], str]] = field(
        default_factory=list
    )  # block, name, maker, kind
    shared: list[tuple[int, str, int, str]] = field(default_factory=list)
    ties: tuple[tuple[int, str], tuple[int, str]] | None = None
    order: list[int] = field(default_factory=list)
    reported: set[int] = field(default_factory=set)
    penalty: bool = False
    kept: list[tuple[int, str]] = field(default_factory=list)  # layers whose kept value the loss reads
    said: list[str] = field(default_factory=list)  # what is in it, for a reader

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, Network)
        loss = F.cross_entropy(model(batch), FORMS[self.form][1](batch)[4])
        for value in model.aux:
            loss = loss + 0.01 * value
        for block, name in self.kept:
            loss = loss + 0.01 * model.blocks[block].layers[name].kept
        if self.penalty:
            loss = loss + 1e-3 * sum(param.square().sum() for param in model.parameters())
        return loss

    @property
    def drops(self) -> bool:
        """Whether a sliced model may draw other masks."""
        return any("dropout" in text for text in self.said)

    def job(self, *, calm: bool = False) -> samestep.Job:
        """calm: without dropout, whose masks slices draw otherwise."""
        draw = torch.Generator().manual_seed(self.seed)
        columns = [
            torch.randn(ROWS, WIDTH, generator=draw),
            torch.randn(ROWS, LENGTH, WIDTH, generator=draw),
            torch.randn(ROWS, 3, 6, 6, generator=draw),
            torch.randint(0, 10, (ROWS, LENGTH), generator=draw),
            torch.randint(0, CLASSES, (ROWS,), generator=draw),
        ]
        form = FORMS[self.form][0]
        return samestep.Job(
            model=lambda: calmed(Network(self)) if calm else Network(self),
            forward=self.loss,
            data=list(zip(*columns, strict=True)),
            collate_fn=lambda rows: form([torch.stack(column) for column in zip(*rows, strict=True)]),
            optimizer=lambda params: torch.optim.SGD(params, 0.05),
            batch_size=BATCH,
            shards=SHARDS,
            steps=STEPS,
            epochs=9,
        )


def calmed(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Block):
            module.is_calm = True
    return model


def designed(seed: int) -> Design:
    """The network of a seed."""
    draw = random.Random(seed)
    design = Design(seed, draw.choice([*FORMS, "tuple", "dict"]))
    form = design.first = draw.choice(["dict", "tuple", "object"])
    for number in range(draw.randint(2, 5)):
        gives = draw.choice(["dict", "tuple", "object"]) if draw.random() < 0.3 else form
        program = Program(form, gives, draw.random() < 0.15, checkpointed=draw.random() < 0.06)
        form = gives
        design.programs.append(program)
        for _ in range(draw.randint(2, 5)):
            _add(design, number, draw)
        if program.checkpointed:
            design.said.append(f"block {number} checkpointed")
    design.order = list(range(len(design.programs)))
    if draw.random() < 0.15:  # a block more than once
        again = draw.choice([n for n in design.order if design.programs[n].takes == design.programs[n].gives] or [0])
        if design.programs[again].takes == design.programs[again].gives:
            at = design.order.index(again)
            design.order[at:at] = [again] * draw.randint(1, 2)
            design.said.append(f"block {again} called {design.order.count(again)} times")
    _share(design, draw)
    if draw.random() < 0.15:
        design.reported = {draw.choice(design.order)}
        design.said.append(f"the loss adds a value of block {design.reported}")
    design.penalty = draw.random() < 0.08
    keepers = [(b, n) for b, n, *_ in design.layers if "keeping" in n]
    if keepers and draw.random() < 0.7:
        design.kept = [draw.choice(keepers)]
        design.said.append(f"the loss reads what {design.kept[0]} keeps")
    return design


def _add(design: Design, number: int, draw: random.Random) -> None:
    """One more operation of a block."""
    program, kind = design.programs[number], draw.choice(["rows", "rows", "words", "pixels"])
    chance = draw.random()
    if chance < 0.5:
        what = draw.choice(list(LAYERS[kind]))
        name = f"{len(design.layers)} {what}".replace(" ", "_")
        design.layers.append((number, name, LAYERS[kind][what], kind))
        residual = draw.random() < 0.3
        program.operations.append(_call(kind, name, residual=residual))
        design.said.append(f"block {number}: {name} of {kind}{' added' if residual else ''}")
        return
    group = "any" if chance < 0.72 else "in place" if chance < 0.8 else "other"
    if group == "other":
        what = draw.choice(list(OTHERS))
        program.operations.append(OTHERS[what])
        design.said.append(f"block {number}: {what}")
        return
    what = draw.choice(list(PURE[group]))
    program.operations.append(_pure(kind, PURE[group][what]))
    design.said.append(f"block {number}: {what} of {kind}")


def _share(design: Design, draw: random.Random) -> None:
    """One layer in two blocks, or called twice in one, or a weight that two layers have."""
    plain = [(b, n, k) for b, n, _, k in design.layers if n.endswith(("linear", "gated", "wide", "norm", "conv"))]
    if plain and draw.random() < 0.25:
        block, name, kind = draw.choice(plain)
        target = draw.randrange(len(design.programs))
        design.shared.append((target, f"shared_{name}", block, name))
        design.programs[target].operations.append(_call(kind, f"shared_{name}", residual=True))
        design.said.append(f"block {target} shares {name} of block {block}")
    linears = [(b, n) for b, n, *_ in design.layers if n.endswith(("_linear", "_bare"))]
    if len(linears) > 1 and draw.random() < 0.15:
        a, b = draw.sample(linears, 2)
        design.ties = (a, b)
        design.said.append(f"weights of {a} and {b} are tied")


def _call(kind: str, name: str, *, residual: bool) -> Op:
    def operation(block: Block, values: Values) -> None:
        x = values[kind][-1]
        made = block.layers[name](x)
        values[kind].append(x + made if residual else made)

    return operation


def _pure(kind: str, function: Callable[[Tensor], Tensor]) -> Op:
    def operation(block: Block, values: Values) -> None:
        values[kind].append(function(values[kind][-1]))

    return operation


# --------------------------------------------------------------------------- branches, several values, several kinds


def _branch_on_value(block: Block, values: Values) -> None:
    x = values["rows"][-1]
    values["rows"].append(torch.tanh(x) if x.sum() > 0 else x * 0.5)


def _branch_on_ids(block: Block, values: Values) -> None:
    if (values["ids"][-1] == 0).any():
        values["words"].append(values["words"][-1] * (values["ids"][-1] > 0)[..., None])


def _functional_dropout(block: Block, values: Values) -> None:
    values["rows"].append(F.dropout(values["rows"][-1], 0.0 if block.is_calm else 0.1))


def _branch_on_shape(block: Block, values: Values) -> None:
    x = values["rows"][-1]
    values["rows"].append(x * 0.9 if x.shape[0] % 2 == 0 else x * 1.1)


def _number_of_a_value(block: Block, values: Values) -> None:
    x = values["rows"][-1]
    values["rows"].append(x / (1.0 + float(x.detach().abs().max())))


def _chosen_rows(block: Block, values: Values) -> None:
    x = values["rows"][-1]
    chosen = (x[:, 0] > 0).nonzero().squeeze(1)
    values["rows"].append(x.index_add(0, chosen, torch.tanh(x[chosen])))


def _masked_rows(block: Block, values: Values) -> None:
    x = values["rows"][-1]
    values["rows"].append(x + (x * (x[:, :1] > 0)).sum(0) / 10)


def _earlier(block: Block, values: Values) -> None:
    values["rows"].append(values["rows"][0] + values["rows"][-1])


def _both(block: Block, values: Values) -> None:
    values["rows"].append(values["rows"][-1] + values["words"][-1].amax(1))


def _back(block: Block, values: Values) -> None:
    values["words"].append(values["words"][-1] + values["rows"][-1][:, None])


def _to_pixels(block: Block, values: Values) -> None:
    values["pixels"].append(values["pixels"][-1] * torch.sigmoid(values["rows"][-1][:, :3, None, None]))


def _gathered(block: Block, values: Values) -> None:
    at = (values["ids"][-1] % LENGTH)[..., None].expand(-1, -1, WIDTH)
    values["words"].append(values["words"][-1].gather(1, at))


def _accumulated(block: Block, values: Values) -> None:
    """A sum in place over a loop."""
    total = torch.zeros_like(values["rows"][-1])
    for t in range(LENGTH):
        total += values["words"][-1][:, t]
    values["rows"].append(torch.tanh(total))


def _written_into(block: Block, values: Values) -> None:
    """A fresh tensor that is filled part by part."""
    x = values["rows"][-1]
    made = torch.empty(len(x), WIDTH)
    made[:, : WIDTH // 2] = x[:, WIDTH // 2 :]
    made[:, WIDTH // 2 :].copy_(x[:, : WIDTH // 2] * 2)
    values["rows"].append(made)


def _gradient_inside(block: Block, values: Values) -> None:
    with torch.enable_grad():
        x = values["rows"][-1].detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(x).sum(), x)
    values["rows"].append(values["rows"][-1] * slope)


def _own_list(block: Block, values: Values) -> None:
    """A list on the module that the next call begins anew."""
    block.noted = [values["rows"][-1], values["rows"][0]]
    values["rows"].append(sum(block.noted) / 2)


def _own_value(block: Block, values: Values) -> None:
    block.last = values["rows"][-1].mean(0)
    values["rows"].append(values["rows"][-1] - block.last)


def _arange(block: Block, values: Values) -> None:
    values["words"].append(values["words"][-1] + torch.arange(LENGTH)[:, None] / 10)


def _plain_numbers(block: Block, values: Values) -> None:
    rate = 1.0 / values["words"][-1].shape[1]
    values["rows"].append(values["rows"][-1] + values["words"][-1].sum(1) * rate)


OTHERS: dict[str, Op] = {
    function.__name__.strip("_").replace("_", " "): function
    for function in (
        _branch_on_value,
        _branch_on_ids,
        _functional_dropout,
        _branch_on_shape,
        _number_of_a_value,
        _chosen_rows,
        _masked_rows,
        _earlier,
        _both,
        _back,
        _to_pixels,
        _gathered,
        _accumulated,
        _written_into,
        _gradient_inside,
        _own_list,
        _own_value,
        _arange,
        _plain_numbers,
    )
}
