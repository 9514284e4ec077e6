"""The memory that a plan needs on every worker, counted before anything is allocated.

    parameters     what the worker computes with
    gradients      a slot of the same size for every node of the tree that its shards keep open
    optimizer      the state of what it updates (SGD with momentum: once, Adam: twice its size)
    activations    the most that is kept for backward at any time, along the worker's own schedule

A data-parallel worker has the whole model and, of the update, a share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from samestep.parallel.cut import Cut, Segment
from samestep.parallel.home import Home
from samestep.parallel.layout import Layout, Piece
from samestep.plan import Plan
from samestep.schedule import actions


@dataclass(frozen=True)
class Footprint:
    """Bytes on one worker."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


def footprint(
    plan: Plan,
    rank: int,
    layout: Layout,
    homes: Sequence[Home],
    pieces: Sequence[Piece],
    state: float,
    structure: Cut,
    schedule: Sequence[actions.Action],
) -> Footprint:
    """Of worker `rank`. state: elements of optimizer state per element of a parameter."""
    used = [(e, home) for e, home in zip(layout.entries, homes, strict=True) if rank in home.workers]
    values = sum(e.nbytes for e, _ in used if e.tied_to is None)
    gradients = sum(e.nbytes * home.kept_slots(rank) for e, home in used)
    owned = sum((p.stop - p.start) * layout.entries[p.entry].param.element_size() for p in pieces)
    return Footprint(values, gradients, int(owned * state), activations(plan, rank, structure, schedule))


def state_per_element(optimizer: optim.Optimizer) -> float:
    """Found out by a step of the same class, with the same settings, on a small parameter."""
    param = nn.Parameter(torch.zeros(64))
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    twin = type(optimizer)([{"params": [param], **group}], lr=0.0)  # type: ignore[call-arg]
    param.grad = torch.zeros(64)
    twin.step()
    held = [v for v in twin.state[param].values() if isinstance(v, Tensor) and v.shape == param.shape]
    return float(len(held))


def activations(plan: Plan, rank: int, structure: Cut, schedule: Sequence[actions.Action]) -> int:
    """The peak along a worker's schedule, by what recorded calls keep; shards as large as the first one."""
    now, peak = 0, 0
    for action in schedule:
        if isinstance(action, actions.Forward | actions.Recompute):
            segment = structure.segments[action.segment]
            kept = _kept(segment)
            recomputes = bool(plan.stages) and plan.stages[segment.stage].recompute
            peak = max(peak, now + kept)
            if recomputes and isinstance(action, actions.Forward):
                kept = sum(structure.nbytes[value] for value in segment.takes)
            now += kept
        elif isinstance(action, actions.Backward):
            segment = structure.segments[action.segment]
            now -= _kept(segment)
            if plan.stages and plan.stages[segment.stage].recompute:
                now -= sum(structure.nbytes[value] for value in segment.takes)
        elif isinstance(action, actions.SliceForward):
            now += _region_kept(plan, rank, structure, structure.segments[action.segment], len(action.shards))
        elif isinstance(action, actions.SliceBackward):
            now -= _region_kept(plan, rank, structure, structure.segments[action.segment], len(action.shards))
        peak = max(peak, now)
    return peak


def _kept(segment: Segment) -> int:
    return sum(call.keeps for call in segment.calls)


def _region_kept(plan: Plan, rank: int, structure: Cut, segment: Segment, shards: int) -> int:
    """Inputs are kept whole by whoever has slices, what lies between in slices."""
    region, stage = segment.region, plan.stages[segment.stage]
    assert region is not None
    counts = dict(stage.slices)[region.column]
    own = counts[stage.workers.index(rank)]
    if not own:
        return 0
    between = sum(call.keeps for call in region.between) + structure.nbytes[region.joins] * (region.row is not None)
    return shards * (structure.nbytes[region.takes] + between * own // sum(counts))
