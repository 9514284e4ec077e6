"""Proofs while a run trains: of samestep's own layers on the first batch, of a cut on a shard now and then.

Each worker proves for itself; nothing is exchanged.

    layers   before the first update, worker 0: with the Linears that write their gradients once, and with torch's
    cut      now and then, every worker: by the uncut and by the cut model, in SHARE of the time
"""

import math
import time
from typing import Any

from samestep.job.job import Job
from samestep.parallel.execution.attendant import Attendant
from samestep.parallel.execution.executor import Executor, StepState
from samestep.parallel.execution.step import StepResult
from samestep.plan.plan import Plan
from samestep.schedule import actions
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.proof import prove_layers, prove_new_records, prove_shard
from samestep.setup.run_memory import RunMemory

SHARE = 0.01  # of the time, over all workers, since the others wait


def proofs_of(
    executor: Executor, job: Job, prepared: LaidOutModel, shared: RunMemory, every: int, step: int
) -> list[Attendant]:
    """The proofs of a run: none under a memory limit, where no worker has all layers, and on GPUs.

    every: steps until the first proof of a cut; 0: none. step: optimizer steps done.
    """
    if prepared.initial is not None or shared.parameters.device.type != "cpu":
        return []
    if executor.plan.stages:
        prove_new_records(job, executor.plan, prepared)
        return [CutProof(job, executor.plan, prepared, executor.transport.rank, every, step)] if every else []
    is_first = executor.transport.rank == 0 and not executor.plan.numerics.sync_batchnorm
    return [LayersProof(job, prepared)] if is_first else []


class LayersProof(Attendant):
    """Proves samestep's own layers on the first shard that a worker loads, and leaves."""

    def __init__(self, job: Job, prepared: LaidOutModel) -> None:
        self._job, self._prepared = job, prepared

    def after_action(self, action: actions.Action, state: StepState) -> None:
        """Raises JobRefused."""
        if isinstance(action, actions.Load) and state.batches:
            prove_layers(self._job, self._prepared, state.batches, state.number)

    def after_step(self, result: StepResult, rows: int) -> None:
        self.among.remove(self)


class CutProof(Attendant):
    """Proves the cut again on one of a worker's own shards, as often as takes `SHARE` of the time."""

    def __init__(self, job: Job, plan: Plan, prepared: LaidOutModel, rank: int, every: int, step: int) -> None:
        self._job, self._plan, self._prepared, self._rank = job, plan, prepared, rank
        self._due = step + every * (1 + rank)
        self._shard: tuple[int, Any] | None = None  # number and batch
        self._began, self._seconds = 0.0, 0.0  # when the step began, and how long the last ones took

    def before_step(self, step: int) -> None:
        self._began = time.perf_counter()

    def after_action(self, action: actions.Action, state: StepState) -> None:
        """Keep a shard's batch until the end of the step: another one each time."""
        if isinstance(action, actions.Load) and state.number + 1 >= self._due and state.batches:
            shards = list(state.batches)
            shard = shards[self._due % len(shards)]
            self._shard = shard, state.batches[shard]

    def after_step(self, result: StepResult, rows: int) -> None:
        """Prove the cut if that is due. Raises PlanRefused."""
        self._seconds = max(time.perf_counter() - self._began, 1e-6)
        if self._shard is None:
            return
        number, batch = self._shard
        began, self._shard = time.perf_counter(), None
        prove_shard(self._job, self._plan, self._prepared, batch, number)
        cost = time.perf_counter() - began
        self._due = result.number + 1 + math.ceil(cost * self._plan.workers / (SHARE * self._seconds))
