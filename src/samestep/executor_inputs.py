"""What an executor is given, whichever the sync policy."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from torch import Tensor, nn

from samestep.consistency.logical import at_meetings
from samestep.job import Job
from samestep.loss import Objective
from samestep.parallel.between_hosts import BetweenHosts
from samestep.parallel.edges import Edges
from samestep.parallel.home import Home
from samestep.parallel.layout import Layout, Piece
from samestep.parallel.stretches import Stretches
from samestep.parallel.unchanged import Unchanged
from samestep.plan import Plan
from samestep.prepared import Prepared, homes_of, used_parameters
from samestep.shared_memory import Shared
from samestep.training_data import Note, shard_batches, training_rows
from samestep.transport.base import Transport


class Inputs(TypedDict):
    """Fields of `Executor`."""

    model: nn.Module
    objective: Objective
    plan: Plan
    transport: Transport
    layout: Layout
    homes: Sequence[Home]
    unchanged: Unchanged
    next_batch: Callable[[], Any]
    clip_grad_norm: float | None
    allow_nan: bool


def inputs_of(
    job: Job, plan: Plan, prepared: Prepared, transport: Transport, first_step: int, note: Note | None, allow_nan: bool
) -> Inputs:
    """Of worker `transport.rank`. note: is told the rows that it takes."""
    rank, homes = transport.rank, homes_of(prepared, at_meetings(plan))
    batches = iter(()) if job.data is None else shard_batches(job, plan, rank, training_rows(job), first_step, note)
    return Inputs(
        model=prepared.model,
        objective=Objective(job.loss, job.forward),
        plan=plan,
        transport=transport,
        layout=prepared.layout,
        homes=homes,
        unchanged=Unchanged(used_parameters(prepared, homes, rank)),
        next_batch=batches.__next__,
        clip_grad_norm=job.clip_grad_norm,
        allow_nan=allow_nan,
    )


def between_hosts(
    layout: Layout,
    shared: Shared,
    transport: Transport,
    homes: Sequence[Home],
    pieces: Sequence[Sequence[Piece]],
    slots: Sequence[Sequence[Tensor]],
    edges: Edges | None = None,
) -> BetweenHosts | None:
    """None where all workers are on one host."""
    if transport.links is None:
        return None
    stretches, own = Stretches(layout, homes, transport.hosts, pieces), pieces[transport.rank]
    return BetweenHosts(layout, homes, transport, stretches, own, slots, shared.parameters, shared.folded, edges)
