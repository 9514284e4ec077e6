"""A plain PyTorch loop over the shards of a job: what the data plan must compute, up to rounding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import samestep
from samestep.job.training_data import training_rows
from samestep.numerics import random_streams


@dataclass(frozen=True)
class PlainRun:
    """losses: of every step. moved: by how much the parameters changed, by name. last: the parameters."""

    losses: list[float]
    first: dict[str, Tensor]
    last: dict[str, Tensor]


def plain_run(job: samestep.Job, *, moved: int = 0) -> PlainRun:
    """Autograd and the optimizer of torch, one shard after the other; every shard begins with the step's buffers.

    moved: unless 0, every weight begins one unit in the last place away, up or down by this seed.
    """
    torch.set_num_threads(1)
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    params = [param for param in model.parameters() if param.requires_grad]
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    if moved:
        noise = torch.Generator().manual_seed(moved)
        for param in params:
            away = torch.where(torch.rand(param.shape, generator=noise) < 0.5, torch.inf, -torch.inf).to(param.dtype)
            param.data = torch.nextafter(param.data, away)
    optimizer, rows, shards = job.optimizer(params), training_rows(job), job.resolved_shards()
    losses = []
    assert job.forward is not None
    assert job.steps is not None
    for step, (epoch, batch) in zip(range(job.steps), job.row_order(rows.num_rows).batches(0), strict=False):
        size = len(batch) // shards
        parts = [batch[i * size : (i + 1) * size] for i in range(shards)]
        losses.append(0.0)
        start = {name: buffer.clone() for name, buffer in model.named_buffers()}
        sums = {name: torch.zeros_like(buffer, dtype=torch.float64) for name, buffer in start.items()}
        for number, shard in enumerate(rows.take(iter([(epoch, part) for part in parts]))):
            random_streams.enter(job.seed, "step", step, number)
            loss: Any = job.forward(model, shard) / shards
            loss.backward()
            losses[-1] += float(loss.detach())
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in start and not buffer.is_complex():
                        sums[name] += buffer
                        mean = (sums[name] / shards).to(buffer.dtype)
                        buffer.copy_(mean if number == shards - 1 else start[name])
        optimizer.step()
        optimizer.zero_grad()
    return PlainRun(losses, first, {name: value.detach() for name, value in model.named_parameters()})


def difference(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(found, wanted, strict=True))


def distance(found: dict[str, Tensor], plain: PlainRun) -> float:
    """The largest distance of a parameter from the plain one's, relative to how far all of them have moved."""
    moved = max(float((plain.last[name] - plain.first[name]).norm()) for name in plain.last)
    return max(float((found[name] - plain.last[name]).norm()) for name in plain.last if name in found) / (moved + 1e-12)
