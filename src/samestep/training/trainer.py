"""One worker's training: steps, evaluation, checkpoints, digest."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from samestep.audit.audit import audit_of
from samestep.audit.bookkeeping import Bookkeeping
from samestep.data.batches import num_rows, rows_of
from samestep.data.rows import FirstRows, Rows, as_rows
from samestep.errors import LossNotFinite
from samestep.job.job import Job
from samestep.job.metrics import Metric, accuracy, is_classification
from samestep.job.training_data import training_rows
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.step import StepResult, run_step
from samestep.plan.plan import Plan
from samestep.planner.search.drift import Drift
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.parallelize import deal_anew, take_part
from samestep.setup.run_memory import RunMemory
from samestep.state import snapshot
from samestep.state.checkpoint import Description, check_same
from samestep.training.evaluation import evaluate
from samestep.transport.transport import Transport


class Training:
    """What one worker does with its parts. Every method must be called by all workers alike."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        prepared: LaidOutModel,
        shared: RunMemory,
        transport: Transport,
        *,
        first_step: int = 0,
        allow_nan: bool = False,
        deals_anew: bool = False,
        audit: int = 0,
    ) -> None:
        """deals_anew: the shards, when workers' speeds change; `shared` must be for any deal then.

        audit: steps from one audit to the next; 0: none, and no ledger.
        """
        self.job, self.plan = job, plan
        self.step_number = first_step  # optimizer steps done
        self._order = None if job.data is None else job.row_order(training_rows(job).num_rows)
        self.num_steps = 0 if self._order is None else job.num_steps(self._order)
        books = None if self._order is None or not audit else Bookkeeping(self._order, transport, first_step)
        self._note = None if books is None else books.note
        self.executor: Executor = take_part(
            job, plan, prepared, shared, transport, first_step, allow_nan=allow_nan, note=self._note
        )
        self.books, self.audit = books, audit_of(self.executor, job, prepared, shared.parameters, audit, first_step)
        self.drift = Drift(plan.assign) if deals_anew else None
        self.deals: list[tuple[int, tuple[int, ...]]] = []  # from which step on, the shares dealt anew
        self._prepared, self._shared = prepared, shared
        self._seen = 0  # one byte per entry of the layout: whether it ever had a gradient
        self._told: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
        self._held_out: Rows | None = None
        if job.evaluate is not None:
            self._held_out = as_rows(job.evaluate, "evaluate", job.seed, job.collate_fn, job.num_loader_workers)

    def step(self, stop_asked: bool = False) -> StepResult:
        """Train on the next batch."""
        assert self._order is not None, "the job has data"
        self._deal()
        result = self._step(self._order.batch_rows(self.step_number), stop_asked)
        if self.books is not None:
            self.books.after(self.step_number)
        return result

    def step_on(self, batch: Any) -> StepResult:
        """Train on a whole batch, the same on every worker: tensors with rows first, in any nest."""
        self._deal()
        if self.audit is not None:
            self.audit.took_other_rows()
        rows = num_rows(batch)
        parts = shard_rows(rows, num_shards := num_shards_of(rows, self.plan.numerics.shards))
        own = self.plan.touched(self.executor.transport.rank, num_shards)
        before = self.executor.next_batch
        self.executor.next_batch = (rows_of(batch, parts[shard], rows) for shard in own).__next__
        try:
            return self._step(rows)
        finally:
            self.executor.next_batch = before

    def _step(self, rows: int, stop_asked: bool = False) -> StepResult:
        try:
            with self.during("step"):
                result = run_step(self.executor, self.step_number, rows, stop_asked)
        except LossNotFinite:
            if self.audit is not None:
                self.audit.suspect()
            raise
        self.step_number += 1
        if self.audit is not None:
            self.audit.after(self.step_number)
        self._seen |= int.from_bytes(result.present, "little")
        if self.drift is not None:
            self.drift.note(result.seconds, num_shards_of(rows, self.plan.numerics.shards))
        return result

    def _deal(self) -> None:
        """Anew, if it is worth it. All workers have seen the same and decide alike."""
        assign = None if self.drift is None else self.drift.redealt()
        if assign is not None:
            deal_anew(self.executor, assign, self.job, self._prepared, self._shared, self.step_number, self._note)
            self.plan = self.executor.plan
            self.deals.append((self.step_number, assign))

    def settle(self) -> Sequence[tuple[int, float]]:
        """Losses of steps so far that no result has told yet: number and loss of each."""
        return self.executor.settle()

    def without_gradient(self) -> list[str]:
        """The parameters that no shard of any step so far gave a gradient."""
        entries = self.executor.layout.entries
        seen = self._seen.to_bytes(len(entries), "little")
        return [entry.name for entry, present in zip(entries, seen, strict=True) if not present]

    @property
    def evaluation_due(self) -> bool:
        """After every epoch, and at the end."""
        if self._held_out is None or self._order is None:
            return False
        return self.step_number % self._order.batches_per_epoch == 0 or self.step_number >= self.num_steps

    def tell_evaluations(self, told: Callable[[int, Mapping[str, float]], None], most_rows: int) -> None:
        """From now on each evaluation is of so many rows at most, and what it finds after a step is told."""
        self._told = told
        if self._held_out is not None:
            self._held_out = FirstRows(self._held_out, most_rows)

    def evaluate(self) -> dict[str, float]:
        """The metrics over the held-out rows; empty without any."""
        if self._held_out is None:
            return {}
        piece_rows = -(-self.job.batch_size // self.plan.numerics.shards)
        with self.during("evaluate"):
            self.executor.share_values(everywhere=True)
        with self.during("evaluate"), self.executor.whole():
            found = evaluate(
                self.executor.model,
                self.executor.objective,
                self._held_out,
                piece_rows,
                self._metrics(),
                self.executor.transport,
                self.plan.numerics.seed,
                self.step_number,
            )
        self._told(self.step_number, found)
        return found

    def digest(self) -> str:
        with self.during("digest"):
            if self.audit is not None:
                self.audit.check_rest()
            return snapshot.digest(self.executor, self.step_number)

    def save(self, root: Path, run: str) -> None:
        """Write a checkpoint under `root`; `run` names this run's temporary folder."""
        with self.during("save"):
            if self.audit is not None:
                self.audit.check_rest()
            snapshot.save(self.executor, self.step_number, root, run, self.fingerprint())
            if self.audit is not None:
                self.audit.checkpoints_in(root)

    def restore(self, folder: Path, description: Description) -> list[str]:
        """Go on from a checkpoint; returns warnings. Raises CheckpointRefused when it is another job's."""
        warnings = check_same(description, self.fingerprint(), self.plan.numerics.line(), folder)
        with self.during("restore"):
            snapshot.restore(self.executor, folder, description)
        if self.audit is not None:
            self.audit.forget(self.step_number)
            self.audit.checkpoints_in(folder.parent)
        return warnings

    def weights(self) -> dict[str, Tensor]:
        """All workers must call it; worker 0 gets them."""
        with self.during("weights"):
            self.executor.share_values(everywhere=True)
        return snapshot.weights(self.executor) if self.executor.transport.rank == 0 else {}

    def during(self, call: str) -> AbstractContextManager[None]:
        """Others see in which call this worker is."""
        return self.executor.transport.timesheet.whereabouts.during(call, self.step_number)

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be of this job."""
        model, update, scheduler = self.executor.model, self.executor.update, self.executor.scheduler
        return {
            "parameters": [f"{n} {p.dtype} {tuple(p.shape)}" for n, p in model.named_parameters()],
            "buffers": [f"{n} {b.dtype} {tuple(b.shape)}" for n, b in model.named_buffers()],
            "optimizer's parameter groups": [", ".join(names) for names in update.group_names],
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "batch size": self.job.batch_size,
            "number of rows": None if self._order is None else self._order.num_rows,
            "shuffle": self.job.shuffle,
            "drop_last": self.job.drop_last,
            "clip_grad_norm": self.job.clip_grad_norm,
        }

    def _metrics(self) -> Mapping[str, Metric]:
        if self.job.metrics is not None:
            return self.job.metrics
        return {"accuracy": accuracy} if is_classification(self.job.loss) else {}
