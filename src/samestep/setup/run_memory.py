"""The memory of a run that its workers share, and the model bound to it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.parallel.execution.buffers import buffer_starts
from samestep.parallel.gradients.ownership import most_published, num_published
from samestep.plan.plan import Plan
from samestep.setup.laid_out_model import LaidOutModel, ownership_of
from samestep.sync.logical_workers import at_meetings
from samestep.sync.staleness import steps_stale
from samestep.system.device import move_rest
from samestep.transport.transport import Fabric


@dataclass(frozen=True)
class RunMemory:
    """The memory of a run: one copy of the parameters, the published gradient slots, the boards."""

    parameters: Tensor
    slots: Sequence[Sequence[Tensor]]  # per worker
    boards: Sequence[Tensor]  # per shard
    folded: Tensor  # per worker and entry: in which step its gradients were folded last
    versions: Tensor  # per worker of the host: the updates that it has made, where the sync policy bounds them


def share(
    prepared: LaidOutModel,
    plan: Plan,
    fabric: Fabric,
    workers: Collection[int] | None = None,
    *,
    fills: bool = True,
    for_any_assignment: bool = False,
) -> RunMemory:
    """Memory for `workers` (default: all) of `plan`. fills: write the initial parameters there.

    for_any_assignment: enough slots for any assignment of shards. Pages that no worker touches take no memory.
    """
    plan = at_meetings(plan)
    layout, ownership = prepared.layout, set(ownership_of(prepared, plan))
    parameters = fabric.memory(layout.nbytes)
    for i, entry in layout.owners() if prepared.initial is None and fills else ():
        layout.view(parameters, i).copy_(entry.param.data)
    slots: list[list[Tensor]] = [[] for _ in range(plan.workers)]
    for rank in range(plan.workers) if workers is None else workers:
        count = most_published(plan) if for_any_assignment else num_published(plan, ownership, rank)
        slots[rank] = [fabric.memory(layout.nbytes) for _ in range(count * (steps_stale(plan) + 1))]
    board = buffer_starts(list(prepared.model.buffers()))[-1]
    boards = [fabric.memory(board) for _ in range(plan.numerics.shards)]
    folded = fabric.memory(plan.workers * len(layout.entries)).view(plan.workers, len(layout.entries))
    versions = fabric.memory(8 * (plan.workers if workers is None else len(workers))).view(torch.int64)
    return RunMemory(parameters, slots, boards, folded, versions)


def bind(prepared: LaidOutModel, shared: RunMemory) -> None:
    """Let the model's parameters be views of the shared memory; its other tensors go to the same device."""
    layout = prepared.layout
    for i, entry in enumerate(layout.entries):
        entry.param.data = layout.view(shared.parameters, i if entry.tied_to is None else entry.tied_to)
    prepared.drop_wholes()
    move_rest(prepared.model, shared.parameters.device)


def groups_that_meet(prepared: LaidOutModel, plan: Plan) -> dict[tuple[int, ...], int]:
    """The groups of workers that compute sliced layers, and the most bytes that one of a group sends at a time."""
    structure = prepared.structure
    groups: dict[tuple[int, ...], int] = {}
    for segment in structure.segments if structure else ():
        if segment.region is not None and structure is not None:
            group = plan.stages[segment.stage].workers
            values = {segment.region.takes, segment.region.makes, segment.region.column_output}
            nodes = max(prepared.sliced[segment.region.column].num_slices // 2, 1)
            largest = max(structure.nbytes.get(value, 0) for value in values)
            needed = plan.numerics.shards * (nodes * largest + 4096)
            groups[group] = max(groups.get(group, 0), needed)
    return groups
