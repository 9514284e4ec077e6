"""Plan + job -> one worker's parts. The only file that knows all techniques.

prepare    build the optimizer, give tied names their own leaves, lay the parameters out
share      give them memory that every worker sees, filled with the initial values
take_part  in the worker: gradients, reduction, buffers, update over that memory
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim

from samestep.data import Rows, as_rows
from samestep.errors import JobRefused
from samestep.job import Job
from samestep.loss import Objective
from samestep.numerics import num_shards_of, shard_rows
from samestep.parallel.batchnorm import synchronise_batchnorm
from samestep.parallel.buffers import Buffers, buffer_starts
from samestep.parallel.executor import Executor
from samestep.parallel.gradients import Gradients, untie
from samestep.parallel.layout import Layout, dense, share_pieces
from samestep.parallel.linear import Place, write_weight_gradients_once
from samestep.parallel.reduce import TreeReduction, num_published
from samestep.parallel.unchanged import Unchanged
from samestep.parallel.undecorated import skip_dynamo_in_step, skip_dynamo_while_building
from samestep.parallel.update import ELEMENTWISE, ShardedUpdate, check_optimizer, is_elementwise
from samestep.plan import Plan
from samestep.transport.base import Fabric, Transport


@dataclass(frozen=True)
class Prepared:
    """A model with its optimizer, not yet spread over workers."""

    model: nn.Module
    optimizer: optim.Optimizer
    layout: Layout


@dataclass(frozen=True)
class Shared:
    """The memory of a run: one copy of the parameters, the published gradient slots, the boards."""

    parameters: Tensor
    slots: Sequence[Sequence[Tensor]]  # per worker
    boards: Sequence[Tensor]  # per shard


def prepare(job: Job, model: nn.Module) -> Prepared:
    """Raises JobRefused when the optimizer cannot be sharded or trains none of the parameters."""
    trainable = [param for param in model.parameters() if param.requires_grad]
    for param in trainable:
        param.data = dense(param.data)
    skip_dynamo_while_building()
    optimizer = check_optimizer(job.optimizer(trainable))
    skip_dynamo_in_step(optimizer, ELEMENTWISE)
    ids = {id(param) for param in trainable}
    managed = [param for group in optimizer.param_groups for param in group["params"]]
    strangers = sum(id(param) not in ids for param in managed)
    if strangers or not managed:
        raise JobRefused(
            f"the optimizer holds {len(managed)} parameters, {strangers} of which are not trainable parameters of the "
            "model: build it from the list that Job.optimizer is called with"
        )
    if job.sync_batchnorm:
        synchronise_batchnorm(model)
    return Prepared(model, optimizer, Layout(untie(model, managed)))


def share(prepared: Prepared, plan: Plan, fabric: Fabric) -> Shared:
    """Memory for all workers of `plan`, with the initial parameters in it."""
    layout = prepared.layout
    parameters = fabric.memory(layout.nbytes)
    for i, entry in layout.owners():
        layout.view(parameters, i).copy_(entry.param.data)
    slots = [[fabric.memory(layout.nbytes) for _ in range(num_published(plan, r))] for r in range(plan.workers)]
    board = buffer_starts(list(prepared.model.buffers()))[-1]
    boards = [fabric.memory(board) for _ in range(plan.numerics.shards)]
    return Shared(parameters, slots, boards)


def bind(prepared: Prepared, shared: Shared) -> None:
    """Let the model's parameters be views of the shared memory."""
    layout = prepared.layout
    for i, entry in enumerate(layout.entries):
        entry.param.data = layout.view(shared.parameters, i if entry.tied_to is None else entry.tied_to)


def take_part(
    job: Job, plan: Plan, prepared: Prepared, shared: Shared, transport: Transport, first_step: int, *, allow_nan: bool
) -> Executor:
    """Worker `transport.rank`'s parts, ready for step `first_step`."""
    rank, layout = transport.rank, prepared.layout
    gradients = Gradients(layout, shared.slots[rank])
    entry_of = {id(entry.param): i for i, entry in enumerate(layout.entries)}

    def place_of(param: nn.Parameter) -> Place | None:
        entry = entry_of.get(id(param))
        return None if entry is None else lambda: gradients.place(entry)

    write_weight_gradients_once(prepared.model, place_of)
    pieces = share_pieces(layout, plan.workers, whole=not is_elementwise(prepared.optimizer))[rank]
    update = ShardedUpdate(prepared.optimizer, layout, pieces)
    rows = training_rows(job)
    return Executor(
        model=prepared.model,
        objective=Objective(job.loss, job.forward),
        plan=plan,
        transport=transport,
        layout=layout,
        gradients=gradients,
        reduction=None if plan.workers == 1 else TreeReduction(layout, plan, rank, pieces, shared.slots),
        buffers=Buffers(prepared.model, shared.boards),
        unchanged=Unchanged(prepared.model),
        update=update,
        scheduler=make_scheduler(job, prepared.optimizer),
        next_batch=shard_batches(job, plan, rank, rows, first_step).__next__,
        clip_grad_norm=job.clip_grad_norm,
        allow_nan=allow_nan,
    )


def training_rows(job: Job) -> Rows:
    return as_rows(job.data, "data", job.seed, job.collate_fn, job.num_loader_workers)


def shard_batches(job: Job, plan: Plan, rank: int, rows: Rows, first_step: int) -> Any:
    """An endless iterator over the batches of worker `rank`'s shards, in the order it computes them.

    Empty when it never has a shard: a loader that looks ahead would look for its first one for ever.
    """
    if not plan.shards_of(rank, num_shards_of(job.batch_size, plan.numerics.shards)):
        return iter(())

    def requests() -> Any:
        for epoch, batch in job.row_order(rows.num_rows).batches(first_step):
            num_shards = num_shards_of(len(batch), plan.numerics.shards)
            parts = shard_rows(len(batch), num_shards)
            for shard in plan.shards_of(rank, num_shards):
                yield epoch, batch[parts[shard].start : parts[shard].stop]

    return rows.take(requests())


def make_scheduler(job: Job, optimizer: optim.Optimizer) -> Any:
    if job.scheduler is None:
        return None
    scheduler = job.scheduler(optimizer)
    if isinstance(scheduler, optim.lr_scheduler.ReduceLROnPlateau) or not hasattr(scheduler, "step"):
        raise JobRefused(
            f"Job.scheduler made a {type(scheduler).__name__}, which cannot be stepped once per optimizer step: "
            "use a schedule of the step number, for example torch.optim.lr_scheduler.CosineAnnealingLR"
        )
    return scheduler
