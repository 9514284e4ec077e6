"""A worker's training together with its attendants: audit, ledger, rebalancing.

The one file that knows both the steps and those who watch them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from samestep.audit.audit import audits_of
from samestep.audit.ledger import Bookkeeping
from samestep.audit.proofs import proofs_of
from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.parallel.execution.attendant import Attendant
from samestep.plan.plan import Plan
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.parallelize import take_part
from samestep.setup.run_memory import RunMemory
from samestep.training.drift import Reassignment, Rebalancing
from samestep.training.job_identity import JobIdentity, Origin
from samestep.training.kept_rows import KeptRows
from samestep.training.trainer import Training
from samestep.transport.transport import Transport


@dataclass(frozen=True)
class Watch:
    """Attendants that a training is to have.

    audit: steps from one audit to the next; 0: no audits and no ledger. rebalance: reassign shards when workers' speeds
    change, over memory that was shared for any assignment. proves: prove layers and cuts; who records a run to compare
    it names what does not hold. origin: where the job comes from.
    """

    audit: int = 0
    rebalance: bool = False
    proves: bool = True
    origin: Origin = field(default_factory=Origin)


def watched_training(
    job: Job,
    plan: Plan,
    prepared: LaidOutModel,
    shared: RunMemory,
    transport: Transport,
    first_step: int,
    *,
    allow_nan: bool,
    watch: Watch,
) -> tuple[Training, Sequence[Reassignment]]:
    """Worker `transport.rank`'s training from `first_step` on, and a list that its reassignments of shards go to."""
    order = None if job.data is None or not watch.audit else job.row_order(training_rows(job).num_rows)
    ledger = [] if order is None else [Bookkeeping(order, transport, first_step)]
    kept = [] if job.collate_fn is None else [KeptRows(ledger[0] if ledger else None)]
    note = kept[0].note if kept else ledger[0].note if ledger else None
    executor = take_part(job, plan, prepared, shared, transport, first_step, allow_nan=allow_nan, note=note)
    audits = audits_of(executor, job, prepared, shared.parameters, watch.audit, first_step)
    rebalancing = [Rebalancing(executor, job, prepared, shared, note)] if watch.rebalance else []
    proofs = proofs_of(executor, job, prepared, shared, watch.audit, first_step) if watch.proves else []
    origin = watch.origin if prepared.initial is None else replace(watch.origin, computes=False)
    identity = JobIdentity(job, executor, origin)
    attendants: list[Attendant] = [*kept, identity, *proofs, *audits, *rebalancing, *ledger]
    return Training(job, executor, first_step, attendants), rebalancing[0].done if rebalancing else ()
