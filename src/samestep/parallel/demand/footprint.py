"""The memory that a plan needs on every worker, counted before anything is allocated.

    parameters     what the worker computes with
    gradients      a slot of the same size for every node of the tree that its shards keep open, and the
                   largest gradient that is made apart, before it is added to a slot; with stale(s), so many
                   slots for each of s + 1 steps
    optimizer      the state of what it updates (SGD with momentum: once, Adam: twice its size)
    activations    the most that is kept for backward at any time, along the worker's own schedule
    workspace      the process itself, and memory through which workers exchange tensors

A data-parallel worker has the whole model and, of the update, a share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from samestep.parallel.cutting.cut import Cut
from samestep.parallel.demand.activation_memory import activations
from samestep.parallel.demand.workspace import workspace
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.sharded_update import ELEMENTWISE
from samestep.parallel.gradients.undecorated import skip_dynamo_in_step
from samestep.plan.plan import Plan
from samestep.schedule import actions
from samestep.sync.staleness import steps_stale


@dataclass(frozen=True)
class Footprint:
    """Bytes on one worker."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.workspace


def footprint(
    plan: Plan,
    rank: int,
    layout: Layout,
    homes: Sequence[Ownership],
    pieces: Sequence[Piece],
    state: float,
    structure: Cut,
    schedule: Sequence[actions.Action],
    shards: int,
) -> Footprint:
    """Of worker `rank`, in a step of `shards`. state: elements of optimizer state per element of a parameter."""
    used = [(e, home) for e, home in zip(layout.entries, homes, strict=True) if rank in home.workers]
    values = sum(e.nbytes for e, _ in used if e.tied_to is None)
    slots = sum(e.nbytes * home.kept_slots(rank) for e, home in used) * (steps_stale(plan) + 1)
    # A product may be written into its slot (linear.py); anything else is made first, then copied or added.
    apart = max((e.nbytes for e, home in used if home.adds(rank) or e.param.dim() != 2), default=0)
    owned = sum((p.stop - p.start) * layout.entries[p.entry].param.element_size() for p in pieces)
    return Footprint(
        values,
        slots + apart,
        int(owned * state),
        activations(plan, rank, structure, schedule, shards),
        workspace(plan, rank, structure, shards),
    )


def state_per_element(optimizer: optim.Optimizer) -> float:
    """Found out by a step of the same class, with the same settings, on a small parameter."""
    param = nn.Parameter(torch.zeros(8, 8))  # some optimizers take matrices only
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    twin = type(optimizer)([{"params": [param], **group}], lr=0.0)  # type: ignore[call-arg]
    skip_dynamo_in_step(twin, ELEMENTWISE)
    param.grad = torch.zeros(8, 8)
    twin.step()
    held = [v for v in twin.state[param].values() if isinstance(v, Tensor) and v.shape == param.shape]
    return float(len(held))
