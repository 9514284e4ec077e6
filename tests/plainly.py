"""Training as everybody writes it, on the whole batch, for comparison with what samestep makes of the same job."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import samestep
from samestep.numerics import random_streams

Objective = Callable[[nn.Module, Any], Tensor]


def initial_model(job: samestep.Job) -> nn.Module:
    """The model as the run starts with it."""
    random_streams.enter(job.seed, "model")
    return job.build_model()


def train_plainly(job: samestep.Job, objective: Objective, steps: int) -> tuple[nn.Module, list[float]]:
    """A model and its losses after `steps` steps over rows in their order (`shuffle=False`)."""
    assert not job.shuffle
    model = initial_model(job)
    optimizer = job.optimizer([param for param in model.parameters() if param.requires_grad])
    scheduler = None if job.scheduler is None else job.scheduler(optimizer)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = objective(model, batch_of(job.data, step, job.batch_size))
        loss.backward()
        if job.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), job.clip_grad_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(float(loss.detach()))
    return model, losses


def batch_of(data: Any, step: int, size: int) -> Any:
    """Batch number `step` of tensors, or of a dict of them; the last one of an epoch may be short."""
    columns = list(data.values()) if isinstance(data, dict) else list(data)
    start = step % -(-len(columns[0]) // size) * size
    parts = [column[start : start + size] for column in columns]
    return dict(zip(data, parts, strict=True)) if isinstance(data, dict) else tuple(parts)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted, in float64."""
    off = (found.double() - wanted.double()).norm()
    return float(off / wanted.double().norm()) if off else 0.0


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """The largest distance over all tensors, and its name."""
    assert set(found) == set(wanted)
    return max((distance(found[name], wanted[name]), name) for name in wanted)


def moves(after: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    """By how much every tensor moved: an error of scale hides in large weights, not in their change."""
    return {name: after[name].double() - before[name].double() for name in after}


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def parameters_of(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in state.items() if name in names}
