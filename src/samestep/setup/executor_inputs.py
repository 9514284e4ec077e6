"""The inputs of an executor that are the same for every sync policy."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from torch import Tensor, nn

from samestep.job.job import Job
from samestep.job.objective import Objective
from samestep.job.training_data import Note, shard_batches, training_rows
from samestep.parallel.execution.unchanged import Unchanged
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.host_exchange import HostExchange
from samestep.parallel.gradients.host_routes import HostRoutes
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership
from samestep.plan.plan import Plan
from samestep.setup.laid_out_model import LaidOutModel, ownership_of, used_parameters
from samestep.setup.run_memory import RunMemory
from samestep.sync.logical_workers import at_meetings
from samestep.transport.transport import Transport


class Inputs(TypedDict):
    """Fields of `Executor`."""

    model: nn.Module
    objective: Objective
    plan: Plan
    transport: Transport
    layout: Layout
    ownership: Sequence[Ownership]
    unchanged: Unchanged
    next_batch: Callable[[], Any]
    clip_grad_norm: float | None
    allow_nan: bool


def inputs_of(
    job: Job,
    plan: Plan,
    prepared: LaidOutModel,
    transport: Transport,
    first_step: int,
    note: Note | None,
    allow_nan: bool,
) -> Inputs:
    """The inputs of worker `transport.rank`. note: is called with the rows that it takes."""
    rank, ownership = transport.rank, ownership_of(prepared, at_meetings(plan))
    batches = iter(()) if job.data is None else shard_batches(job, plan, rank, training_rows(job), first_step, note)
    return Inputs(
        model=prepared.model,
        objective=Objective(job.loss, job.forward),
        plan=plan,
        transport=transport,
        layout=prepared.layout,
        ownership=ownership,
        unchanged=Unchanged(
            used_parameters(prepared, ownership, rank), [entry.param for entry in prepared.layout.entries]
        ),
        next_batch=batches.__next__,
        clip_grad_norm=job.clip_grad_norm,
        allow_nan=allow_nan,
    )


def between_hosts(
    layout: Layout,
    shared: RunMemory,
    transport: Transport,
    ownership: Sequence[Ownership],
    pieces: Sequence[Sequence[Piece]],
    slots: Sequence[Sequence[Tensor]],
    edges: CompressedEdges | None = None,
) -> HostExchange | None:
    """The exchange between hosts; None where all workers are on one. pieces: those that each worker updates."""
    if transport.links is None:
        return None
    routes = HostRoutes(layout, ownership, transport, pieces, slots, shared.parameters, edges)
    return HostExchange(routes, transport, shared.folded)
