"""A worker's part where logical workers go apart: `ExecutorApart`, ready for its first step."""

import torch
from torch import Tensor, nn

from samestep.consistency.logical import Logical, at_meetings
from samestep.consistency.meeting import Outer, Seen
from samestep.job import Job
from samestep.loss import Objective
from samestep.parallel.apart import ExecutorApart, Replica, Untied
from samestep.parallel.between_hosts import BetweenHosts
from samestep.parallel.buffers import Buffers
from samestep.parallel.gradients import Gradients
from samestep.parallel.layout import Piece, share_pieces
from samestep.parallel.linear import write_weight_gradients_once
from samestep.parallel.reduce import TreeReduction
from samestep.parallel.stretches import Stretches, by_host, owners
from samestep.parallel.unchanged import Unchanged
from samestep.parallel.undecorated import skip_dynamo_in_step
from samestep.parallel.update import ELEMENTWISE, ShardedUpdate, check_optimizer
from samestep.plan import Plan
from samestep.prepared import Prepared, homes_of, used_parameters
from samestep.scheduler import make_scheduler
from samestep.shared_memory import Shared
from samestep.training_data import Note, shard_batches, training_rows
from samestep.transport.base import Transport
from samestep.tree import local_plan


def take_part_apart(
    job: Job,
    plan: Plan,
    logical: Logical,
    prepared: Prepared,
    shared: Shared,
    transport: Transport,
    first_step: int,
    *,
    allow_nan: bool,
    note: Note | None = None,
) -> ExecutorApart:
    """Worker `transport.rank`'s parts: each logical worker has a whole model's state, and no memory of it is shared."""
    rank, layout, model, common = transport.rank, prepared.layout, prepared.model, shared.parameters
    untied, homes = Untied(layout), homes_of(prepared, at_meetings(plan))
    if isinstance(job.loss, nn.Module):
        job.loss.to(common.device)

    def memory() -> Tensor:
        return torch.zeros(layout.nbytes, dtype=torch.uint8, device=common.device)

    share = len(logical.shards_of(0, logical.shards))
    slots = max(local_plan(range(n), n).num_slots for n in range(1, share + 1))
    gradients = Gradients(layout, [memory() for _ in range(slots)])
    write_weight_gradients_once(model, gradients.place_of)
    pieces = owners(untied, homes, transport.hosts, whole=False)
    together = None
    if plan.workers > 1:
        between = None
        if transport.links is not None:
            stretches = Stretches(untied, homes, transport.hosts, pieces)
            between = BetweenHosts(
                untied, homes, transport, stretches, pieces[rank], shared.slots, common, shared.folded
            )
        together = TreeReduction(untied, homes, rank, pieces[rank], shared.slots, between)
    tied = {id(entry.param) for entry in layout.entries if entry.tied_to is not None}
    trainable = [param for param in model.parameters() if param.requires_grad and id(param) not in tied]
    boards = [common.new_zeros(len(shared.boards[0])) for _ in range(share)]
    replicas = []
    for number in logical.of(rank):
        optimizer = check_optimizer(job.optimizer(trainable))
        skip_dynamo_in_step(optimizer, ELEMENTWISE)
        update = ShardedUpdate(optimizer, layout, [Piece(i, 0, e.param.numel()) for i, e in layout.owners()])
        own, buffers = memory().copy_(common), Buffers(model, boards)
        replicas.append(Replica(number, own, update, make_scheduler(job, optimizer), buffers, first_step))
    host = by_host(range(plan.workers), transport.hosts)[transport.hosts[rank]]
    near = share_pieces(untied, len(host), whole=False)[host.index(rank)]
    outer: dict[Piece, Outer] = {}
    if logical.policy.outer is not None:
        for piece in near:
            before = untied.flat(common, piece.entry)[piece.start : piece.stop].clone()
            outer[piece] = Outer(logical.policy.outer, before, torch.zeros_like(before))
    batches = iter(()) if job.data is None else shard_batches(job, plan, rank, training_rows(job), first_step, note)
    return ExecutorApart(
        model=model,
        objective=Objective(job.loss, job.forward),
        plan=plan,
        transport=transport,
        layout=layout,
        homes=homes,
        gradients=gradients,
        reduction=None,
        buffers=replicas[0].buffers,
        unchanged=Unchanged(used_parameters(prepared, homes, rank)),
        update=replicas[0].update,
        scheduler=replicas[0].scheduler,
        next_batch=batches.__next__,
        clip_grad_norm=job.clip_grad_norm,
        allow_nan=allow_nan,
        logical=logical,
        replicas=replicas,
        common=common,
        published=shared.slots[rank],
        together=together,
        pieces=[Piece(i, 0, e.param.numel()) for i, e in layout.owners()] if together is None else pieces[rank],
        meeting=Buffers(model, shared.boards),
        near=near,
        outer=outer,
        seen=Seen(logical.policy.steps),
    )
