"""Job: the model, data, optimizer and length of a training. A plain value that a function returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn, optim

from samestep.data.loading import Collate
from samestep.data.ordered import Ordered
from samestep.data.row_order import RowOrder
from samestep.data.rows import as_rows
from samestep.errors import JobRefused
from samestep.job.metrics import Metric, Predictions
from samestep.job.objective import Objective
from samestep.numerics.numerics import PRECISIONS, default_shards

Callback = Callable[[int, float, Mapping[str, float]], None]
"""`callback(step, loss, metrics)`: called in worker 0 after every step; `metrics` is empty except after
an evaluation. A method `close()`, if there is one, is called at the end."""


@dataclass(kw_only=True)
class Job:
    """One training job.

    model: a module, or a function (a class will do) that makes one. Layers that it has put into eval mode stay there;
        a model that is in eval mode as a whole is put into train mode.
    loss: `loss(model(x), y)` for (x, y) data; a mean, or a (sum, weight) pair.
    forward: instead of loss, for any other data: `forward(model, batch)`, a mean or (sum, weight).
    optimizer: `optimizer(params)` over the real parameters, a list; it may make groups of them.
    scheduler: `scheduler(optimizer)`; stepped once per optimizer step.
    clip_grad_norm: largest 2-norm of the gradient of the whole model.
    data: a tuple of tensors, arrays (memory-mapped too) or `Files` with rows first, a mapping of them, `Parquet`,
        a map-style data set, or `Ordered` (docs/data.md). None: the batches come from a loop of the user's
        own (`Trainer.step`).
    collate_fn: joins samples of a data set.
    num_loader_workers: processes per worker that load data ahead that is not in memory.
    shuffle, drop_last: as in torch's DataLoader.
    batch_size: rows of the whole batch, over all workers.
    epochs, steps: the length of training; the shorter of the two, one epoch if neither is given.
    shards: S, the number of shards of a batch; part of the numbers. Default: 4, fewer if a shard would
        have under 8 rows.
    evaluate: held-out data, in the form of `data`; evaluated after every epoch and at the end.
    metrics: by name, `metric(outputs, targets) -> (sum, count)` (`metric(model, batch)` with forward=),
        or `Predictions(function)`. Default: the loss, and the accuracy of classifiers.
    seed: the seed of everything random; part of the numbers.
    precision: "float32", or "bfloat16" for autocast.
    codec: compression of gradients on edges of the reduction tree, e.g. "int8@2" (docs/hosts.md); part of the numbers.
    sync: when workers must agree, "exact", "stale(1)", "local(16)" (docs/consistency.md); part of the numbers.
    sync_batchnorm: BatchNorm statistics over the whole batch instead of per shard.
    callbacks: see `Callback`.
    """

    model: nn.Module | Callable[[], nn.Module]
    optimizer: Callable[[list[nn.Parameter]], optim.Optimizer]
    batch_size: int
    data: Any = None
    loss: Callable[..., Any] | None = None
    forward: Callable[..., Any] | None = None
    scheduler: Callable[[optim.Optimizer], Any] | None = None
    clip_grad_norm: float | None = None
    collate_fn: Collate | None = None
    num_loader_workers: int = 0
    shuffle: bool = True
    drop_last: bool = False
    epochs: int | None = None
    steps: int | None = None
    shards: int | None = None
    evaluate: Any = None
    metrics: Mapping[str, Metric] | None = None
    seed: int = 0
    precision: str = "float32"
    codec: str = "none"
    sync: str = "exact"
    sync_batchnorm: bool = False
    callbacks: Sequence[Callback] = field(default_factory=tuple)

    def check(self) -> None:
        """Raise JobRefused for mistakes that can be seen without running anything."""
        for name in ("batch_size", "epochs", "steps", "shards"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise JobRefused(f"Job.{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("seed", "num_loader_workers"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise JobRefused(f"Job.{name} is {value!r}; it must be a whole number of at least 0")
        for name in ("shuffle", "drop_last", "sync_batchnorm"):
            if type(getattr(self, name)) is not bool:
                raise JobRefused(f"Job.{name} is {getattr(self, name)!r}; it must be True or False")
        if self.precision not in PRECISIONS:
            raise JobRefused(f"Job.precision is {self.precision!r} (known: {', '.join(PRECISIONS)})")
        if not isinstance(self.codec, str):
            raise JobRefused(f'Job.codec is a {type(self.codec).__name__}; give text, for example "int8@1"')
        if not isinstance(self.sync, str):
            raise JobRefused(f'Job.sync is a {type(self.sync).__name__}; give text, for example "stale(1)"')
        norm = self.clip_grad_norm
        if norm is not None and (isinstance(norm, bool) or not isinstance(norm, int | float) or not norm > 0):
            raise JobRefused(f"Job.clip_grad_norm is {norm!r}; it must be a number above 0, or None")
        self._check_functions()
        Objective(self.loss, self.forward)
        as_data = partial(as_rows, seed=self.seed, collate=self.collate_fn, num_loader_workers=0)
        if self.evaluate is not None:
            as_data(self.evaluate, "evaluate")
        rows = None if self.data is None else as_data(self.data, "data").num_rows
        if rows is not None and self.batch_size > rows:
            raise JobRefused(
                f"a batch of {self.batch_size} rows is larger than the data set of {rows} rows: "
                f"set batch_size to at most {rows}"
            )
        if isinstance(self.data, Ordered) and self.shuffle:
            raise JobRefused(
                "Job.data is Ordered, whose rows come in an order of their own, and Job.shuffle is True: set "
                "shuffle=False (to shuffle, let make do it with a generator seeded by the epoch)"
            )
        shards = self.resolved_shards()
        if shards > self.batch_size:
            raise JobRefused(
                f"{shards} shards are more than the {self.batch_size} rows of a batch: "
                f"set shards (or --shards) to at most {self.batch_size}"
            )

    def _check_functions(self) -> None:
        if not callable(self.optimizer):
            raise JobRefused(
                f"Job.optimizer is a {type(self.optimizer).__name__}; give a function of the parameters, "
                "for example lambda params: torch.optim.SGD(params, lr=0.1)"
            )
        if not callable(self.model):  # a module is callable too
            raise JobRefused(
                f"Job.model is a {type(self.model).__name__}; give a torch.nn.Module, or a function that makes one"
            )
        for name in ("loss", "forward", "scheduler", "collate_fn"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise JobRefused(f"Job.{name} is a {type(value).__name__}; give a function, or leave it out")
        if not isinstance(self.metrics, Mapping | None):
            raise JobRefused(
                f"Job.metrics is a {type(self.metrics).__name__}; give a dict by name, "
                'for example {"accuracy": samestep.accuracy}'
            )
        for name, metric in (self.metrics or {}).items():
            if not isinstance(name, str) or name == "loss" or not (callable(metric) or isinstance(metric, Predictions)):
                raise JobRefused(
                    f"Job.metrics[{name!r}] is a {type(metric).__name__}; give a function that returns (sum, count), "
                    'or Predictions(function), under a name of its own ("loss" is always there)'
                )
        if not isinstance(self.callbacks, Sequence) or not all(callable(callback) for callback in self.callbacks):
            raise JobRefused("Job.callbacks must be a list of functions callback(step, loss, metrics)")

    def resolved_shards(self) -> int:
        return self.shards if self.shards is not None else default_shards(self.batch_size)

    def build_model(self) -> nn.Module:
        """The module itself, or the one that the factory makes, its modules in the modes that the factory gave them.

        A model that is in eval mode as a whole, as pretrained ones come, is put into train mode. Raises JobRefused if
        it cannot be trained.
        """
        model = self.model if isinstance(self.model, nn.Module) else self.model()
        if not isinstance(model, nn.Module):
            raise JobRefused(f"Job.model made a {type(model).__name__}, not a torch.nn.Module")
        check_model(model)
        return model if any(module.training for module in model.modules()) else model.train()

    def row_order(self, num_rows: int) -> RowOrder:
        return RowOrder(num_rows, self.batch_size, self.seed, self.shuffle, self.drop_last)

    def num_steps(self, order: RowOrder) -> int:
        """Length of training in optimizer steps."""
        epochs = self.epochs if self.epochs is not None or self.steps is not None else 1
        lengths = [self.steps, None if epochs is None else epochs * order.batches_per_epoch]
        return min(length for length in lengths if length is not None)


def check_model(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.layout != torch.strided:
            raise JobRefused(
                f"{name} is a sparse tensor ({tensor.layout}), and the memory that workers share is dense: register "
                "its indices and values, and build it from them in forward"
            )
    lazy = [name for name, param in model.named_parameters() if torch.nn.parameter.is_lazy(param)]
    if lazy:
        raise JobRefused(
            f"parameter {lazy[0]} is lazy and not yet initialised ({len(lazy)} such): let model be a function that "
            "runs the model once on a sample and returns it"
        )
    if not any(param.requires_grad for param in model.parameters()):
        raise JobRefused("the model has no trainable parameter: nothing would change; set requires_grad on some")
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise JobRefused(
                f"layer {name} ({type(module).__name__}) has sparse gradients, samestep adds dense ones: "
                "build it with sparse=False"
            )
    elsewhere = [name for name, param in model.named_parameters() if param.device.type != "cpu"]
    if elsewhere:
        raise JobRefused(f"parameter {elsewhere[0]} is not on the CPU, where this version trains: call .cpu()")
