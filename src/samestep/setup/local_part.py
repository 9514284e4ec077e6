"""A worker's part under local(H): `LocalExecutor`, ready for its first step."""

import torch
from torch import Tensor

from samestep.job.job import Job
from samestep.job.scheduler import make_scheduler
from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.execution.local_executor import LocalExecutor
from samestep.parallel.execution.replica_meeting import Replica, ReplicaMeeting
from samestep.parallel.gradients.job_optimizer import ELEMENTWISE, check_optimizer, skip_dynamo_in_step
from samestep.parallel.gradients.layout import Layout, Piece, ValueLayout, share_pieces
from samestep.parallel.gradients.linear import write_weight_gradients_once
from samestep.parallel.gradients.own_sum import OwnSum
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.parallel.gradients.slots import GradientSlots
from samestep.parallel.gradients.stretches import by_host, owners
from samestep.setup.executor_inputs import Inputs, between_hosts
from samestep.setup.run_memory import RunMemory
from samestep.sync.averaging import ObservedBound, Outer
from samestep.sync.logical_workers import Logical


def take_local_part(job: Job, logical: Logical, shared: RunMemory, first_step: int, inputs: Inputs) -> LocalExecutor:
    """A worker's parts: each logical worker has a whole model's state, and no memory of it is shared."""
    layout, model = inputs["layout"], inputs["model"]
    share = len(logical.shards_of(0, logical.shards))
    num_slots = max(local_plan(range(n), n).num_slots for n in range(1, share + 1))
    gradients = GradientSlots(layout, [memory_for(layout, shared) for _ in range(num_slots)])
    write_weight_gradients_once(model, gradients.place_of)
    replicas = replicas_of(job, logical, shared, first_step, inputs)
    return LocalExecutor(
        **inputs,
        gradients=gradients,
        reduction=OwnSum(layout, gradients),
        buffers=replicas[0].buffers,
        update=replicas[0].update,
        scheduler=replicas[0].scheduler,
        logical=logical,
        replicas=replicas,
        meeting=meeting_of_replicas(logical, shared, replicas, inputs),
    )


def replicas_of(job: Job, logical: Logical, shared: RunMemory, first_step: int, inputs: Inputs) -> list[Replica]:
    """The logical workers of this worker, each with an optimizer of its own."""
    layout, model, common = inputs["layout"], inputs["model"], shared.parameters
    tied = {id(entry.param) for entry in layout.entries if entry.tied_to is not None}
    trainable = [param for param in model.parameters() if param.requires_grad and id(param) not in tied]
    share = len(logical.shards_of(0, logical.shards))
    boards = [common.new_zeros(len(shared.boards[0])) for _ in range(share)]
    replicas = []
    for number in logical.of(inputs["transport"].rank):
        optimizer = check_optimizer(job.optimizer(trainable))
        skip_dynamo_in_step(optimizer, ELEMENTWISE)
        update = ShardedUpdate(optimizer, layout, [Piece(i, 0, e.param.numel()) for i, e in layout.owners()])
        own, buffers = memory_for(layout, shared).copy_(common), Buffers(model, boards)
        replicas.append(Replica(number, own, update, make_scheduler(job, optimizer), buffers, first_step))
    return replicas


def meeting_of_replicas(logical: Logical, shared: RunMemory, replicas: list[Replica], inputs: Inputs) -> ReplicaMeeting:
    """The meetings of this worker's replicas with all others."""
    transport, ownership = inputs["transport"], inputs["ownership"]
    rank, layout, common = transport.rank, ValueLayout(inputs["layout"]), shared.parameters
    own_slots = [*shared.slots[rank]]
    plan = local_plan(logical.of(rank), logical.workers)
    while len(own_slots) < max(1 + fold.slot for fold in plan.folds if not fold.into):
        own_slots.append(memory_for(layout, shared))
    slots = [own_slots if worker == rank else other for worker, other in enumerate(shared.slots)]
    pieces = owners(layout, ownership, transport.hosts, whole=False)
    exchange = between_hosts(layout, shared, transport, ownership, pieces, slots)
    host = by_host(range(len(transport.hosts)), transport.hosts)[transport.hosts[rank]]
    host_pieces = share_pieces(layout, len(host), whole=False)[host.index(rank)]
    outer: dict[Piece, Outer] = {}
    if logical.policy.outer is not None:
        for piece in host_pieces:
            before = layout.flat(common, piece.entry)[piece.start : piece.stop].clone()
            outer[piece] = Outer(logical.policy.outer, before, torch.zeros_like(before))
    return ReplicaMeeting(
        logical=logical,
        layout=layout,
        transport=transport,
        replicas=replicas,
        common=common,
        slots=own_slots,
        reduction=TreeReduction(layout, ownership, rank, pieces[rank], slots, exchange),
        pieces=pieces[rank],
        buffers=Buffers(inputs["model"], shared.boards),
        host_pieces=host_pieces,
        outer=outer,
        observed=ObservedBound(logical.policy.steps),
    )


def memory_for(layout: Layout, shared: RunMemory) -> Tensor:
    """Memory for one value of every parameter, which no other worker sees."""
    return torch.zeros(layout.nbytes, dtype=torch.uint8, device=shared.parameters.device)
