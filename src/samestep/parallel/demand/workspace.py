"""Memory that a worker's process needs beside the tensors that its plan keeps, in bytes.

process     pages of the interpreter that it writes to, code that oneDNN compiles, buffers of products
mailboxes   a pipeline's: slots in memory that sender and receiver share; each counts half
outboxes    of sliced layers: two halves, as large as the most that the worker gives away at a time
"""

from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.cutting.cut import Segment
from samestep.parallel.demand.planned_step import PlannedStep
from samestep.plan.plan import Plan
from samestep.transport.shared_tensors import SLOT, SLOTS

PROCESS = 24_000_000  # measured (benchmarks/memory_parts); it does not grow with the model
PIPELINE_SLOTS = 16


def mail_slots(plan: Plan) -> int:
    """Number of slots of a mailbox. In a pipeline more: a stage that is ahead need not wait for its successor."""
    return PIPELINE_SLOTS if len(plan.stages) > 1 else SLOTS


def workspace(step: PlannedStep, rank: int) -> int:
    """Bytes that the process of worker `rank` needs."""
    outboxes = [_outbox(step, rank, segment) for segment in step.cut.segments if segment.is_sliced]
    return PROCESS + _mailboxes(step, rank) + 2 * max(outboxes, default=0)


def _mailboxes(step: PlannedStep, rank: int) -> int:
    """Half of the bytes in use of the mailboxes to and from workers of neighbouring stages."""
    total, stages = 0, step.plan.stages
    for stage, crossing in enumerate(step.cut.crossings):
        largest = max((min(SLOT, step.cut.nbytes[value]) for value in crossing), default=0)
        before, after = stages[stage].workers, stages[stage + 1].workers
        peers = {p for p in before if rank in after} | {p for p in after if rank in before}
        total += len(peers - {rank}) * mail_slots(step.plan) * largest
    return total


def _outbox(step: PlannedStep, rank: int, segment: Segment) -> int:
    """The most bytes that a worker gives away in one of the four exchanges of a sliced segment."""
    workers = step.plan.stages[segment.stage].workers
    if rank not in workers or len(workers) == 1:
        return 0
    region, group = step.slices_of(segment)[0], step.join_group(rank, segment, range(step.num_shards))
    own, own_slices, total = len(group.own_shards), group.own_slices, group.num_slices
    nodes = len(local_plan(own_slices, total).left) if own_slices else 0
    x, y = step.cut.nbytes[region.takes], step.cut.nbytes[region.makes]
    outputs = y * nodes if region.is_summed else y * len(own_slices) // total
    return max(own * max(x, y), (step.num_shards - own) * max(outputs, x * nodes))
