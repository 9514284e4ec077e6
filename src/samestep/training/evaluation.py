"""Evaluation over all workers, each row exactly once.

The rows are cut, in order, into pieces of a shard's size, whoever computes them; sums are added and
predictions are joined in the order of the pieces, so metrics do not depend on the workers either.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samestep.data.row_order import RowOrder
from samestep.data.rows import FirstRows, Rows, as_rows
from samestep.errors import JobRefused
from samestep.job.job import Job
from samestep.job.loss_checks import check_pair
from samestep.job.metrics import Metric, Predictions, accuracy, is_classification
from samestep.job.objective import Objective
from samestep.numerics import random_streams
from samestep.parallel.execution.executor import Executor
from samestep.system.device import to_device
from samestep.transport.transport import Transport

FACT = struct.Struct("<IIdd")  # piece, metric, sum, count


class Evaluation:
    """The evaluations of one worker's training: which rows, after which steps, and who hears of them."""

    def __init__(self, job: Job, executor: Executor, order: RowOrder | None) -> None:
        """order: of the training data, if there are any. Raises JobRefused for held-out data without rows."""
        self._job, self._executor, self._order = job, executor, order
        self._callback: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
        self._rows: Rows | None = None
        if job.evaluate is not None:
            self._rows = as_rows(job.evaluate, "evaluate", job.seed, job.collate_fn, job.num_loader_workers)

    def is_due(self, step: int) -> bool:
        """Whether `step` optimizer steps are the end of an epoch, or of the training."""
        if self._rows is None or self._order is None:
            return False
        return step % self._order.batches_per_epoch == 0 or step >= self._job.num_steps(self._order)

    def on_evaluation(self, callback: Callable[[int, Mapping[str, float]], None], max_rows: int) -> None:
        """From now on evaluate over `max_rows` rows at most, and call back with the step and its metrics."""
        self._callback = callback
        if self._rows is not None:
            self._rows = FirstRows(self._rows, max_rows)

    def after(self, step: int) -> dict[str, float]:
        """The metrics over the held-out rows after `step` steps; empty without any rows. All workers must call it."""
        if self._rows is None:
            return {}
        job, executor = self._job, self._executor
        metrics = job.metrics
        if metrics is None:
            metrics = {"accuracy": accuracy} if is_classification(job.loss) else {}
        during, numerics = executor.transport.timesheet.whereabouts.during, executor.plan.numerics
        with during("evaluate", step):
            executor.share_values(everywhere=True)
        with during("evaluate", step), executor.whole():
            found = evaluate(
                executor.model,
                executor.objective,
                self._rows,
                -(-job.batch_size // numerics.shards),
                metrics,
                executor.transport,
                numerics.seed,
                step,
            )
        self._callback(step, found)
        return found


def evaluate(
    model: nn.Module,
    objective: Objective,
    rows: Rows,
    piece_rows: int,
    metrics: Mapping[str, Metric],
    transport: Transport,
    seed: int,
    step: int,
) -> dict[str, float]:
    """`loss` and the given metrics over all of `rows`. All workers must call it."""
    collected = {name: metric for name, metric in metrics.items() if isinstance(metric, Predictions)}
    summed = {name: metric for name, metric in metrics.items() if name not in collected}
    pieces = [range(a, min(a + piece_rows, rows.num_rows)) for a in range(0, rows.num_rows, piece_rows)]
    mine = range(transport.rank, len(pieces), transport.size)
    facts: list[bytes] = []
    predictions: dict[int, tuple[Tensor, Tensor]] = {}
    with evaluating(model), torch.no_grad():
        batches = rows.take_counted((step, pieces[piece]) for piece in mine)
        device = next(model.parameters()).device
        for piece, (kept, loaded) in zip(mine, batches, strict=True):
            batch, count = to_device(loaded, device), len(pieces[piece]) if kept is None else kept
            random_streams.enter(seed, "evaluate", step, piece)
            if objective.has_outputs:
                check_pair(batch)
            outputs = model(batch[0]) if objective.has_outputs else None
            loss = objective(model, batch, count) if outputs is None else objective.of_outputs(outputs, batch, count)
            facts.append(FACT.pack(piece, 0, loss.sum, loss.weight))
            for i, (name, metric) in enumerate(summed.items(), 1):
                found = metric(model, batch) if outputs is None else metric(outputs, batch[1])  # type: ignore[operator]
                facts.append(FACT.pack(piece, i, *_sum_and_count(name, found)))
            if collected:
                predictions[piece] = _prediction(outputs, batch)
    everybodys = sorted(FACT.iter_unpack(b"".join(transport.exchange(b"".join(facts)))))
    results = {name: _mean(everybodys, i) for i, name in enumerate(["loss", *summed])}
    if collected:
        results |= _of_predictions(collected, predictions, len(pieces), transport)
    return results


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards each of its modules is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _sum_and_count(name: str, found: Any) -> tuple[float, float]:
    try:
        total, count = found
        return float(total), float(count)
    except (TypeError, ValueError, RuntimeError):
        raise JobRefused(
            f"metric {name!r} returned {_shown(found)}, not a (sum, count) pair of numbers: return for example "
            "(right.sum(), len(right)), or wrap a function of all rows in samestep.Predictions"
        ) from None


def _number(name: str, found: Any) -> float:
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError):
        raise JobRefused(f"metric {name!r} returned {_shown(found)}, not a number: return one") from None


def _shown(value: Any) -> str:
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r:.60}"


def _mean(facts: list[tuple[int, int, float, float]], metric: int) -> float:
    total = sum(value for _, i, value, _ in facts if i == metric)
    count = sum(count for _, i, _, count in facts if i == metric)
    return total / count if count else float("nan")


def _prediction(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(outputs, Tensor):
        raise JobRefused(
            f"a Predictions metric needs the model's outputs as one tensor with a row each, they are a "
            f"{type(outputs).__name__}: use a (sum, count) metric, or (x, y) data with a loss"
        )
    return outputs, batch[1]


def _of_predictions(
    metrics: Mapping[str, Predictions], mine: dict[int, tuple[Tensor, Tensor]], num_pieces: int, transport: Transport
) -> dict[str, float]:
    """Metrics of all predictions: worker 0 gathers them in row order, computes, and sends the values to the others."""
    values = b""
    if transport.rank == 0:
        outputs, targets = zip(*_gathered(mine, num_pieces, transport), strict=True)
        joined = torch.cat(outputs), torch.cat(targets)
        values = struct.pack(
            f"<{len(metrics)}d", *(_number(name, metric.function(*joined)) for name, metric in metrics.items())
        )
    else:
        for outputs_, targets_ in mine.values():
            transport.send(outputs_, 0)
            transport.send(targets_, 0)
    found = transport.exchange(values)[0]
    return dict(zip(metrics, struct.unpack(f"<{len(metrics)}d", found), strict=True))


def _gathered(
    mine: dict[int, tuple[Tensor, Tensor]], num_pieces: int, transport: Transport
) -> Iterator[tuple[Tensor, Tensor]]:
    for piece in range(num_pieces):
        holder = piece % transport.size
        yield mine[piece] if holder == 0 else (transport.receive(holder), transport.receive(holder))
