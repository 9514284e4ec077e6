"""One worker's training: its steps, and what they count."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from samestep.data.batches import num_rows, rows_of
from samestep.errors import LossNotFinite
from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.parallel.execution.attendant import Attendant, Attendants
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.step import StepResult, run_step
from samestep.plan.plan import Plan
from samestep.training.evaluation import Evaluation


class Training:
    """The steps of one worker. Every method must be called by all workers alike.

    attendants: who watches the steps, or acts between them.
    """

    def __init__(self, job: Job, executor: Executor, first_step: int = 0, attendants: Iterable[Attendant] = ()) -> None:
        self.job, self.executor = job, executor
        self.step_number = first_step  # optimizer steps done
        self.order = None if job.data is None else job.row_order(training_rows(job).num_rows)
        self.num_steps = 0 if self.order is None else job.num_steps(self.order)
        self.attendants = Attendants(attendants)
        self.evaluation = Evaluation(job, executor, self.order)
        self._has_gradient = 0  # one byte per entry of the layout: whether it ever had a gradient

    @property
    def plan(self) -> Plan:
        """The plan with the shares of now; they change when shards are reassigned."""
        return self.executor.plan

    def step(self, stop_asked: bool = False) -> StepResult:
        """Train on the next batch of the job's own data."""
        assert self.order is not None, "the job has data"
        self._before_step()
        return self._step(self.order.batch_rows(self.step_number), stop_asked)

    def step_batch(self, batch: Any) -> StepResult:
        """Train on a whole batch, the same on every worker: tensors with rows first, in any nest."""
        self._before_step()
        for attendant in self.attendants:
            attendant.expect_other_rows()
        rows = num_rows(batch)
        parts = shard_rows(rows, num_shards := num_shards_of(rows, self.plan.numerics.shards))
        own = self.plan.touched(self.executor.transport.rank, num_shards)
        before = self.executor.next_batch
        self.executor.next_batch = (rows_of(batch, parts[shard], rows) for shard in own).__next__
        try:
            return self._step(rows)
        finally:
            self.executor.next_batch = before

    def _before_step(self) -> None:
        for before_step in self.attendants.before_step:
            before_step(self.step_number)

    def _step(self, rows: int, stop_asked: bool = False) -> StepResult:
        watching = self.attendants
        try:
            with self.during("step"):
                result = run_step(
                    self.executor, self.step_number, rows, stop_asked, watching.before_action, watching.after_action
                )
        except LossNotFinite:
            for attendant in watching:
                attendant.on_not_finite()
            raise
        self.step_number += 1
        for after_step in watching.after_step:
            after_step(result, rows)
        self._has_gradient |= int.from_bytes(result.present, "little")
        return result

    def settle(self) -> Sequence[tuple[int, float]]:
        """Number and loss of each step so far whose loss no result has had yet."""
        return self.executor.settle()

    def without_gradient(self) -> list[str]:
        """Names of the parameters that no shard of any step so far gave a gradient."""
        entries = self.executor.layout.entries
        present = self._has_gradient.to_bytes(len(entries), "little")
        return [entry.name for entry, has_gradient in zip(entries, present, strict=True) if not has_gradient]

    def during(self, call: str) -> AbstractContextManager[None]:
        """Show others, inside the context, that this worker is in this call."""
        return self.executor.transport.timesheet.whereabouts.during(call, self.step_number)
