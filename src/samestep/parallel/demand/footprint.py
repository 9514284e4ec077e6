"""Memory that a plan needs on every worker, counted before anything is allocated.

    parameters     what the worker computes with, frozen ones and buffers included, of which a shard has a copy
    gradients      a slot of the same size for every node of the tree that its shards keep open, and the
                   largest gradient that is made outside of its slot and then added; with stale(s), the slots
                   of s + 1 steps
    optimizer      the state of the parameters that it updates (SGD with momentum: once, Adam: twice its size)
    activations    the most that is kept for backward at any time, along the worker's own schedule
    workspace      the process itself, and memory through which workers exchange tensors

A data-parallel worker has the whole model and, of the update, a share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from samestep.parallel.demand.activation_memory import activations
from samestep.parallel.demand.planned_step import PlannedStep
from samestep.parallel.demand.workspace import workspace
from samestep.parallel.gradients.job_optimizer import ELEMENTWISE, skip_dynamo_in_step
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership
from samestep.schedule import actions
from samestep.sync.staleness import steps_stale


@dataclass(frozen=True)
class Footprint:
    """Bytes that one worker needs, by purpose."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.workspace


def footprint(
    step: PlannedStep,
    rank: int,
    layout: Layout,
    homes: Sequence[Ownership],
    pieces: Sequence[Piece],
    state: float,
    schedule: Sequence[actions.Action],
    constants: int = 0,
) -> Footprint:
    """Memory of worker `rank`. state: elements of optimizer state per element of a parameter that it updates.
    constants: bytes of what every worker holds and no optimizer."""
    used = [(e, home) for e, home in zip(layout.entries, homes, strict=True) if rank in home.workers]
    values = sum(e.nbytes for e, _ in used if e.tied_to is None)
    slots = sum(e.nbytes * home.kept_slots(rank) for e, home in used) * (steps_stale(step.plan) + 1)
    # A product may be written into its slot (linear.py); anything else is made outside, then copied or added.
    outside = max((e.nbytes for e, home in used if home.adds(rank) or e.param.dim() != 2), default=0)
    owned = sum((p.stop - p.start) * layout.entries[p.entry].param.element_size() for p in pieces)
    return Footprint(
        values + constants,
        slots + outside,
        int(owned * state),
        activations(step, rank, schedule),
        workspace(step, rank),
    )


def constant_bytes(model: nn.Module, layout: Layout) -> int:
    """Bytes of frozen parameters, once, and of buffers, twice, in every worker."""
    managed = {id(param) for entry in layout.entries for param in (entry.param, entry.whole)}
    frozen = sum(param.nbytes for param in model.parameters() if id(param) not in managed)
    return frozen + 2 * sum(buffer.nbytes for buffer in model.buffers())


def state_per_element(optimizer: optim.Optimizer) -> float:
    """Elements of optimizer state per element of a parameter, from a step with the same settings on a small one."""
    param = nn.Parameter(torch.zeros(8, 8))  # some optimizers take matrices only
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    twin = type(optimizer)([{"params": [param], **group}], lr=0.0)  # type: ignore[call-arg]
    skip_dynamo_in_step(twin, ELEMENTWISE)
    param.grad = torch.zeros(8, 8)
    twin.step()
    held = [v for v in twin.state[param].values() if isinstance(v, Tensor) and v.shape == param.shape]
    return float(len(held))
