"""Jobs that break an assumption on purpose, one each: what samestep assumes of a job does not hold for them."""

import itertools
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

import samestep

ROWS, WIDTH, CLASSES = 32, 8, 3


class Chain(nn.Module):
    """Four layers. `before` is called with what the second one makes, in the midst of forward."""

    def __init__(self, before: Callable[["Chain", Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head, self.before = nn.Linear(WIDTH, CLASSES), before

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        if self.before is not None:
            h = self.before(self, h)
        return self.head(torch.relu(self.d(torch.relu(self.c(h)))))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def job(model: Callable[[], nn.Module] = Chain, **changes: Any) -> samestep.Job:
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    fields = {
        "model": model,
        "forward": cross_entropy,
        "data": (x, torch.arange(ROWS) % CLASSES),
        "optimizer": lambda params: torch.optim.SGD(params, 0.1),
        "batch_size": 8,
        "shards": 4,
        "steps": 4,
    }
    return samestep.Job(**{**fields, **changes})


def inside(function: Callable[[Chain, Tensor], Tensor]) -> Callable[[], samestep.Job]:
    """A job whose forward calls this in its midst."""
    return lambda: job(lambda: Chain(function))


# -------------------------------------------------------------------------------------------- randomness of one's own


def by_python(model: Chain, h: Tensor) -> Tensor:
    return h * 2 if random.random() < 0.5 else h


def by_numpy(model: Chain, h: Tensor) -> Tensor:
    return h * float(np.random.rand())


def by_entropy(model: Chain, h: Tensor) -> Tensor:
    torch.seed()
    return h + torch.rand_like(h)


class OwnGenerator(Chain):
    def __init__(self) -> None:
        super().__init__(lambda model, h: h + torch.rand(h.shape, generator=model.own))
        self.own = torch.Generator().manual_seed(0)


def by_the_clock(model: Chain, h: Tensor) -> Tensor:
    return h * (1 + time.perf_counter() % 1)


# --------------------------------------------------------------------------------------------------- state of one's own


class Counted(Chain):
    def __init__(self) -> None:
        super().__init__(self.more)
        self.calls = 0

    @staticmethod
    def more(model: Any, h: Tensor) -> Tensor:
        model.calls += 1
        return h * (1 + 0.1 * model.calls)


COUNT = itertools.count()


def by_a_global(model: Chain, h: Tensor) -> Tensor:
    return h * (1 + 0.1 * (next(COUNT) % 5))


class Remembering(Chain):
    """Its next forward begins from what this one left behind, which is no buffer."""

    def __init__(self) -> None:
        super().__init__(self.mixed)
        self.mean = torch.zeros(WIDTH)

    @staticmethod
    def mixed(model: Any, h: Tensor) -> Tensor:
        model.mean = 0.5 * model.mean + 0.5 * h.detach().mean(0)
        return h - model.mean


class GrowingList(Chain):
    def __init__(self) -> None:
        super().__init__(self.of_all)
        self.seen: list[Tensor] = []

    @staticmethod
    def of_all(model: Any, h: Tensor) -> Tensor:
        model.seen.append(h.detach().mean())
        return h - torch.stack(model.seen).sum()


class KeptGraph(Chain):
    """The loss of a step reads what the forward before it left, with its graph."""

    def __init__(self) -> None:
        super().__init__(self.with_last)
        self.last = torch.zeros(())

    @staticmethod
    def with_last(model: Any, h: Tensor) -> Tensor:
        before, model.last = model.last, h.mean()
        return h + before


# ------------------------------------------------------------------------------------------------ what a cut cannot see


def to_numpy(model: Chain, h: Tensor) -> Tensor:
    return h + torch.from_numpy(np.tanh(h.detach().numpy()))


def hooked(model: Chain, h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda grad: grad * 2)
    return h


def retained(model: Chain, h: Tensor) -> Tensor:
    if h.requires_grad:
        h.retain_grad()
    return h


class Autocast(Chain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class ReentrantCheckpoint(Chain):
    def forward(self, x: Tensor) -> Tensor:
        found = checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)
        assert isinstance(found, Tensor)
        return found


class OtherWeights(Chain):
    def forward(self, x: Tensor) -> Tensor:
        doubled = {name: value * 2 for name, value in self.c.named_parameters()}
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(torch.relu(self.d(torch.func.functional_call(self.c, doubled, (h,)))))


class NoGradOverTheCut(Chain):
    def forward(self, x: Tensor) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            h = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.head(torch.relu(self.d(h)))


class SharedAcross(Chain):
    """One weight under two parents."""

    def __init__(self) -> None:
        super().__init__()
        self.d = self.a


class TurnedAround(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(torch.relu(self.c(x)))))))


class SkippingLayers(Chain):
    """Another layer is called for some batches."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        h = torch.relu(self.c(h)) if x.sum() > 0 else torch.relu(self.d(h))
        return self.head(h)


class WithoutGradient(Chain):
    """A layer whose output the loss uses, but no gradient comes back to it."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.head(h) * torch.sigmoid(self.d(x).data.mean())


# ------------------------------------------------------------------------------------- parameters, buffers and modules


def writes_a_weight(model: Chain, h: Tensor) -> Tensor:
    with torch.no_grad():
        model.a.bias.add_(1e-3)
    return h


def makes_a_layer(model: Chain, h: Tensor) -> Tensor:
    if not hasattr(model, "late"):
        model.late = nn.Linear(WIDTH, WIDTH)
    return h + model.late(h)


def replaces_a_parameter(model: Chain, h: Tensor) -> Tensor:
    model.a.bias = nn.Parameter(model.a.bias.detach() * 0.9)
    return h


class GrowingBuffer(Chain):
    def __init__(self) -> None:
        super().__init__(self.longer)
        self.register_buffer("seen", torch.zeros(0))

    @staticmethod
    def longer(model: Any, h: Tensor) -> Tensor:
        model.seen = torch.cat([model.seen, h.detach().mean()[None]])
        return h


class WholeNumbers(Chain):
    """An integer buffer that depends on the rows."""

    def __init__(self) -> None:
        super().__init__(self.counted)
        self.register_buffer("positive", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def counted(model: Any, h: Tensor) -> Tensor:
        model.positive += (h > 0.1).sum()
        return h


# -------------------------------------------------------------------------------------------- callbacks, optimizer, end


def freezing(step: int) -> Callable[[], samestep.Job]:
    def made() -> samestep.Job:
        kept: list[nn.Parameter] = []

        def optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
            kept[:] = params
            return torch.optim.SGD(params, 0.1)

        def callback(now: int, loss: float, metrics: Any) -> None:
            if now == step:
                kept[0].requires_grad_(False)

        return job(optimizer=optimizer, callbacks=[callback])

    return made


class Adding(torch.optim.lr_scheduler.LRScheduler):
    """Adds a parameter group at the third step."""

    def get_lr(self) -> list[float]:
        if self.last_epoch == 2:
            self.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
            self.base_lrs.append(0.1)
        return [group["lr"] for group in self.optimizer.param_groups]


def rate_of_one_worker() -> samestep.Job:
    made: list[torch.optim.Optimizer] = []

    def optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        made[:] = [torch.optim.SGD(params, 0.1)]
        return made[0]

    def callback(step: int, loss: float, metrics: Any) -> None:  # called in worker 0 alone
        if step == 2:
            made[0].param_groups[0]["lr"] = 0.01

    return job(optimizer=optimizer, callbacks=[callback])


class WithoutState:
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= 0.9


class GlobalNorm(torch.optim.Optimizer):
    """Divides by the norm of all gradients that it sees."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
        for param in params:
            assert param.grad is not None
            param.sub_(0.1 * param.grad / norm)


# --------------------------------------------------------------------------------------------------------------- data


class Noisy(Dataset[Any]):
    """Rows with noise from a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        return torch.randn(WIDTH, generator=self.generator), torch.tensor(index % CLASSES)


class Worn(Noisy):
    """A row differs each time that it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return torch.full((WIDTH,), index + 0.01 * self.reads), torch.tensor(index % CLASSES)


class Clocked(Noisy):
    def __getitem__(self, index: int) -> Any:
        return torch.full((WIDTH,), time.perf_counter() % 1), torch.tensor(index % CLASSES)


# ------------------------------------------------------------------------------------------------------------- losses


def detached(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch).detach()


def per_row(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def ignoring(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), torch.where(batch[1] == 1, -100, batch[1]), ignore_index=-100) * 1.0


def sometimes_nan(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) + torch.log(batch[0].sum() - batch[0].sum() - 1)


JOBS: dict[str, Callable[[], samestep.Job]] = {
    "python's random numbers": inside(by_python),
    "numpy's random numbers": inside(by_numpy),
    "a seed from entropy": inside(by_entropy),
    "a generator of its own": lambda: job(OwnGenerator),
    "the clock": inside(by_the_clock),
    "a counter of calls": lambda: job(Counted),
    "a global counter": inside(by_a_global),
    "a value remembered": lambda: job(Remembering),
    "a list that grows": lambda: job(GrowingList),
    "a graph kept": lambda: job(KeptGraph),
    "numpy in between": inside(to_numpy),
    "a hook on a tensor": inside(hooked),
    "a gradient retained": inside(retained),
    "autocast": lambda: job(Autocast),
    "a reentrant checkpoint": lambda: job(ReentrantCheckpoint),
    "other weights": lambda: job(OtherWeights),
    "no_grad over the cut": lambda: job(NoGradOverTheCut),
    "a weight on both sides": lambda: job(SharedAcross),
    "stages out of order": lambda: job(TurnedAround),
    "stages by value": lambda: job(SkippingLayers),
    "a slice without gradient": lambda: job(WithoutGradient),
    "forward writes a weight": inside(writes_a_weight),
    "forward makes a layer": inside(makes_a_layer),
    "forward replaces a parameter": inside(replaces_a_parameter),
    "a buffer that grows": lambda: job(GrowingBuffer),
    "whole numbers that differ": lambda: job(WholeNumbers),
    "frozen by a callback": freezing(2),
    "a group added later": lambda: job(scheduler=Adding),
    "a rate of one worker": rate_of_one_worker,
    "a scheduler without state": lambda: job(scheduler=WithoutState),
    "a function in a group": lambda: job(
        optimizer=lambda params: torch.optim.SGD([{"params": params, "note": print}], 0.1)
    ),
    "an optimizer of a norm": lambda: job(optimizer=GlobalNorm),
    "a parameter of complex128": lambda: job(Complex, forward=of_complex),
    "rows with their own noise": lambda: job(data=Noisy()),
    "rows that wear": lambda: job(data=Worn()),
    "rows of the clock": lambda: job(data=Clocked()),
    "a detached loss": lambda: job(forward=detached),
    "a loss per row": lambda: job(forward=per_row),
    "ignored labels": lambda: job(forward=ignoring),
    "a loss that is no number": lambda: job(forward=sometimes_nan),
}


def resumed(
    *,
    rate: float = 0.1,
    dropout: float = 0.1,
    smoothing: float = 0.0,
    width: int = WIDTH,
    power: float = 0.9,
    data: int = 0,
) -> samestep.Job:
    """A job that a checkpoint was made of, or one that differs from it in one thing."""
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(data))

    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, CLASSES))

    return job(
        made,
        forward=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing),
        data=(x, torch.arange(ROWS) % CLASSES),
        optimizer=lambda params: torch.optim.SGD(params, rate),
        scheduler=lambda found: torch.optim.lr_scheduler.LambdaLR(found, lambda step: power**step),
    )


class Complex(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(WIDTH, dtype=torch.complex128))


def of_complex(model: nn.Module, batch: Any) -> Tensor:
    assert isinstance(model, Complex)
    return F.cross_entropy(model((batch[0] * model.phase).abs().float()), batch[1])
