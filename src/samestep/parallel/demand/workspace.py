"""What a worker's process needs beside what its plan keeps, in bytes.

process     pages of the interpreter that it writes to, code that oneDNN compiles, buffers of products
mailboxes   a pipeline's: slots in memory that sender and receiver share; each counts half
outboxes    of sliced layers: two halves, as large as the most that the worker gives away at a time
"""

from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.cutting.cut import Cut, Segment
from samestep.parallel.execution.joint import meeting_of
from samestep.plan.plan import Plan
from samestep.transport.shared_tensors import SLOT, SLOTS

PROCESS = 24_000_000  # measured (benchmarks/memory_parts); it does not grow with the model
PIPELINE_SLOTS = 16


def mail_slots(plan: Plan) -> int:
    """Of a mailbox: a stage that is ahead need not wait until its successor takes what it sent."""
    return PIPELINE_SLOTS if len(plan.stages) > 1 else SLOTS


def workspace(plan: Plan, rank: int, structure: Cut, shards: int) -> int:
    """Of worker `rank`, in steps of so many shards."""
    given = [given_away(plan, rank, structure, segment, shards) for segment in structure.segments if segment.region]
    return PROCESS + mail(plan, rank, structure) + 2 * max(given, default=0)


def mail(plan: Plan, rank: int, structure: Cut) -> int:
    """Half of what is touched of the mailboxes to and from workers of neighbouring stages."""
    total = 0
    for cut, crossing in enumerate(structure.crossings):
        largest = max((min(SLOT, structure.nbytes[value]) for value in crossing), default=0)
        before, after = plan.stages[cut].workers, plan.stages[cut + 1].workers
        peers = {p for p in before if rank in after} | {p for p in after if rank in before}
        total += len(peers - {rank}) * mail_slots(plan) * largest
    return total


def given_away(plan: Plan, rank: int, structure: Cut, segment: Segment, shards: int) -> int:
    """The most bytes that a worker puts into its outbox in one of a meeting's four exchanges."""
    region, stage = segment.region, plan.stages[segment.stage]
    assert region is not None
    if rank not in stage.workers or len(stage.workers) == 1:
        return 0
    held = {worker: plan.shards_of(worker, shards, segment.stage) for worker in stage.workers}
    meeting = meeting_of(rank, stage.workers, dict(stage.slices)[region.column], held, range(shards))
    own, own_slices, total = len(meeting.own_shards), meeting.own_slices, meeting.num_slices
    nodes = len(local_plan(own_slices, total).left) if own_slices else 0
    x, y = structure.nbytes[region.takes], structure.nbytes[region.makes]
    outputs = y * nodes if region.is_summed else y * len(own_slices) // total
    return max(own * max(x, y), (shards - own) * max(outputs, x * nodes))
