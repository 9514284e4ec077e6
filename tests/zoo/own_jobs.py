"""Jobs that break samestep on purpose when they are loaded: each a bug that parallel training really had.

The bug shows with several workers only, so that one worker stays the right reference. `only_on` is the worker that
has it.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import samestep
from samestep.numerics import random_streams
from samestep.parallel.execution import executor as executors
from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.execution.executor import Executor
from samestep.parallel.gradients.layout import Layout
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.parallel.gradients.slots import GradientSlots
from samestep.training import evaluation

ROWS = 64


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 12, generator=generator), torch.randint(0, 5, (ROWS,), generator=generator)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last(self.left(x).tanh() + self.right(x).relu())  # type: ignore[no-any-return]


def job(**fields: Any) -> samestep.Job:
    common: dict[str, Any] = {
        "model": Net,
        "data": images(),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": lambda params: optim.SGD(params, 0.1, momentum=0.9),
        "batch_size": 16,
        "shards": 4,
        "steps": 4,
    }
    return samestep.Job(**{**common, **fields})


def around(owner: type, name: str, wrapped: Callable[..., Any]) -> None:
    """Let `wrapped(original, self, ...)` stand in for a method."""
    original = getattr(owner, name)
    setattr(owner, name, lambda self, *given, **named: wrapped(original, self, *given, **named))


def is_second(executor: Executor) -> bool:
    return executor.transport.size > 1 and executor.transport.rank == 1


def entries(executor: Executor, name: str) -> list[int]:
    return [i for i, entry in enumerate(executor.layout.entries) if name in entry.name]


def without_gradients_of_a_worker(name: str = "") -> samestep.Job:
    """#1, #2: worker 1's gradients never reach the sum. #8: only those of a norm's weights do not."""

    def agree(original: Any, self: Executor, action: Any, state: Any) -> None:
        if is_second(self):
            for slot in self.gradients._fixed:
                for entry in entries(self, name):
                    slot[entry].zero_()
        original(self, action, state)

    around(Executor, "agree", agree)
    return job()


def last_shard_dropped() -> samestep.Job:
    """#3, #4: the last accumulated gradient is not in what is sent."""

    def fold(original: Any, self: GradientSlots, entry: int, grad: Tensor, arrivals: Any) -> None:
        notice, self.when_arrived = self.when_arrived, None
        if notice is not None:
            notice(arrivals.shard, entry, grad)
        is_lost = arrivals.shard == 3 and PROCESSES[0] > 1
        original(self, entry, grad * 0 if is_lost else grad, arrivals)
        self.when_arrived = notice

    around(GradientSlots, "_fold", fold)
    count_processes()
    return job()


PROCESSES = [1]


def count_processes() -> None:
    """How many workers there are, for methods that know no transport."""

    def load(original: Any, self: Executor, action: Any, state: Any) -> None:
        PROCESSES[0] = self.transport.size
        original(self, action, state)

    around(Executor, "load", load)


def added_twice() -> samestep.Job:
    """A worker's gradients enter the sum twice."""

    def agree(original: Any, self: Executor, action: Any, state: Any) -> None:
        if is_second(self):
            for slot in self.gradients._fixed:
                for grad in slot:
                    grad.mul_(2)
        original(self, action, state)

    around(Executor, "agree", agree)
    return job()


def off_by_the_number_of_workers() -> samestep.Job:
    """#7: all gradients are too large by one factor."""

    def settle(original: Any, self: Executor, facts: Any, state: Any) -> None:
        original(self, facts, state)
        state.scale *= self.transport.size

    around(Executor, "_settle_loss", settle)
    return job()


def swapped() -> samestep.Job:
    """#21: a worker publishes the gradients of two layers of one shape in swapped places."""

    def agree(original: Any, self: Executor, action: Any, state: Any) -> None:
        if is_second(self):
            left, right = entries(self, "left.weight")[0], entries(self, "right.weight")[0]
            for slot in self.gradients._fixed:
                kept = slot[left].clone()
                slot[left].copy_(slot[right])
                slot[right].copy_(kept)
        original(self, action, state)

    around(Executor, "agree", agree)
    return job()


def tied(broken: bool = True) -> samestep.Job:
    """#10: with several workers, the second name of a tied weight is left out of the sum."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.words(x)).tanh())  # type: ignore[no-any-return]

    if broken:
        count_processes()
        around(Layout, "aliases", lambda original, self, entry: [] if PROCESSES[0] > 1 else original(self, entry))
    generator = torch.Generator().manual_seed(2)
    data = tuple(torch.randint(0, 9, (ROWS,), generator=generator) for _ in range(2))
    return job(model=Tied, data=data)


def norm_of_own_pieces() -> samestep.Job:
    """#9: every worker clips by the norm of its own part of the gradient."""

    def clip(original: Any, self: Executor, action: Any, state: Any) -> None:
        whole = self.transport.exchange
        self.transport.exchange = lambda record: [record]  # type: ignore[method-assign, assignment, misc]
        original(self, action, state)
        self.transport.exchange = whole  # type: ignore[method-assign]

    around(Executor, "clip", clip)
    return job(clip_grad_norm=0.05)


def buffers_of_own_shards() -> samestep.Job:
    """#11: the statistics of BatchNorm stay those of a worker's own shards."""

    class Normed(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    def merge(original: Any, self: Buffers, changed: Any, rows: Any) -> None:
        own = [0, 1] if PROCESSES[0] > 1 else range(len(rows))
        original(self, [changed[shard] for shard in own], [rows[shard] for shard in own])

    count_processes()
    around(Buffers, "merge", merge)
    return job(model=Normed)


def other_rows() -> samestep.Job:
    """#12, #13: the second worker trains on rows that it has had before."""

    def load(original: Any, self: Executor, action: Any, state: Any) -> None:
        original(self, action, state)
        if is_second(self):
            first = next(iter(state.batches.values()))
            state.batches = dict.fromkeys(state.batches, first)

    around(Executor, "load", load)
    return job()


def stream_of_the_worker() -> samestep.Job:
    """Random numbers by worker instead of by shard: dropout draws other masks elsewhere."""

    class Dropped(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 5))

    def forward(original: Any, self: Executor, action: Any, state: Any) -> None:
        enter = executors.random_streams.enter

        def entered(*parts: Any) -> None:
            enter(*parts, *(["worker"] if is_second(self) else []))

        executors.random_streams.enter = entered
        try:
            original(self, action, state)
        finally:
            executors.random_streams.enter = enter

    assert random_streams is executors.random_streams
    around(Executor, "forward", forward)
    return job(model=Dropped)


def update_without_effect() -> samestep.Job:
    """#16: the optimizer of a worker holds tensors that the model does not use any more."""

    def step(original: Any, self: ShardedUpdate, gradient_of: Any) -> None:
        kept = [(target, target.detach().clone()) for _, target in self.targets]
        original(self, gradient_of)
        if PROCESSES[0] > 1:
            for target, before in kept:
                target.data.copy_(before)

    count_processes()
    around(ShardedUpdate, "step", step)
    return job()


def state_lost() -> samestep.Job:
    """#14, #15: momentum is gone on a worker after the first step, as after a resume that drops it."""

    def step(original: Any, self: Executor, action: Any, state: Any) -> None:
        if is_second(self) and state.number == 1:
            self.update.optimizer.state.clear()
        original(self, action, state)

    around(Executor, "step", step)
    return job()


def other_rate() -> samestep.Job:
    """#15: the schedule of the learning rate starts anew on a worker."""

    def step(original: Any, self: Executor, action: Any, state: Any) -> None:
        original(self, action, state)
        if is_second(self):
            for group in self.update.optimizer.param_groups:
                group["lr"] = 0.1

    around(Executor, "step", step)
    return job(scheduler=lambda optimizer: optim.lr_scheduler.ExponentialLR(optimizer, 0.5))


def old_weights() -> samestep.Job:
    """#22: a worker computes a shard with the weights of the step before."""
    old: dict[int, Tensor] = {}

    def forward(original: Any, self: Executor, action: Any, state: Any) -> None:
        param = next(entry.param for entry in self.layout.entries if entry.name == "left.weight")
        old[state.number] = param.detach().clone()  # here, since another worker may update it soon
        if is_second(self) and action.shard == 3 and state.number > 0:
            now = param.data
            param.data = old[state.number - 1]
            original(self, action, state)
            param.data = now
        else:
            original(self, action, state)

    around(Executor, "forward", forward)
    return job()


def validation_divided(everywhere: bool = False) -> samestep.Job:
    """#6: the validation loss is divided by the number of accumulated shards; with one worker too, where asked."""

    right = evaluation.evaluate

    def evaluate(*given: Any) -> dict[str, float]:
        found = right(*given)
        model, transport = given[0], given[5]
        assert isinstance(model, nn.Module)
        return {**found, "loss": found["loss"] / 4} if everywhere or transport.size > 1 else found

    evaluation.evaluate = evaluate  # type: ignore[assignment]
    return job(evaluate=images())


# Bugs of users' own code


def nan_of_a_row() -> samestep.Job:
    """#17: a row has a finite loss and a gradient that is NaN; after the reduction every worker has it."""

    class Rooted(Net):
        def forward(self, x: Tensor) -> Tensor:
            size = x.square().sum(1, keepdim=True) * self.first.weight.square().sum()
            return super().forward(x) + torch.where(size > 0, size.sqrt(), 0.0)

    x, y = images()
    x[0] = 0.0
    return job(model=Rooted, data=(x, y), shuffle=False)


def counts_calls() -> samestep.Job:
    """The process remembers how often forward ran: a warm-up by calls is another one on every worker."""

    class Warming(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Warming.calls += 1
            return super().forward(x) * min(1.0, Warming.calls / 8)

    return job(model=Warming)


def of_the_process() -> samestep.Job:
    """Something that no two runs have in common."""

    class Marked(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + (os.getpid() % 97) / 1000)

    return job(model=Marked)


def tokens(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A mean over the labels that count, returned as a mean over rows."""
    found = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    counted = (batch[1] != 0).float()
    return (found * counted).sum() / counted.sum().clamp(min=1)


def mean_of_means() -> samestep.Job:
    """#5: a mean over tokens that tells nobody how many they were."""
    return job(loss=None, forward=tokens)


def contrastive(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Every other row of the batch is a negative."""
    found = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(found @ found.T / math.sqrt(0.1), torch.arange(len(found)))


def negatives_in_the_batch() -> samestep.Job:
    return job(loss=None, forward=contrastive)


def right() -> samestep.Job:
    return job()
