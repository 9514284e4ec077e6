"""A worker's part where logical workers go apart: `LocalExecutor`, ready for its first step."""

import torch
from torch import Tensor

from samestep.job.job import Job
from samestep.job.scheduler import make_scheduler
from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.execution.local_executor import LocalExecutor, Replica, Untied
from samestep.parallel.gradients.layout import Piece, share_pieces
from samestep.parallel.gradients.linear import write_weight_gradients_once
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import ELEMENTWISE, ShardedUpdate, check_optimizer
from samestep.parallel.gradients.slots import GradientSlots
from samestep.parallel.gradients.stretches import by_host, owners
from samestep.parallel.gradients.undecorated import skip_dynamo_in_step
from samestep.setup.executor_inputs import Inputs, between_hosts
from samestep.setup.run_memory import RunMemory
from samestep.sync.averaging import ObservedBound, Outer
from samestep.sync.logical_workers import Logical


def take_part_apart(job: Job, logical: Logical, shared: RunMemory, first_step: int, inputs: Inputs) -> LocalExecutor:
    """A worker's parts: each logical worker has a whole model's state, and no memory of it is shared."""
    plan, transport, layout = inputs["plan"], inputs["transport"], inputs["layout"]
    rank, model, homes, common = transport.rank, inputs["model"], inputs["homes"], shared.parameters
    untied = Untied(layout)

    def memory() -> Tensor:
        return torch.zeros(layout.nbytes, dtype=torch.uint8, device=common.device)

    share = len(logical.shards_of(0, logical.shards))
    slots = max(local_plan(range(n), n).num_slots for n in range(1, share + 1))
    gradients = GradientSlots(layout, [memory() for _ in range(slots)])
    write_weight_gradients_once(model, gradients.place_of)
    pieces = owners(untied, homes, transport.hosts, whole=False)
    together = None
    if plan.workers > 1:
        between = between_hosts(untied, shared, transport, homes, pieces, shared.slots)
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
    return LocalExecutor(
        **inputs,
        gradients=gradients,
        reduction=None,
        buffers=replicas[0].buffers,
        update=replicas[0].update,
        scheduler=replicas[0].scheduler,
        logical=logical,
        replicas=replicas,
        common=common,
        published=shared.slots[rank],
        together=together,
        pieces=[Piece(i, 0, e.param.numel()) for i, e in layout.owners()] if together is None else pieces[rank],
        meeting=Buffers(model, shared.boards),
        near=near,
        outer=outer,
        seen=ObservedBound(logical.policy.steps),
    )
