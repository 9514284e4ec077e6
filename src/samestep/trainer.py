"""One worker's training: steps, evaluation, checkpoints, digest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from samestep import snapshot
from samestep.batches import num_rows, rows_of
from samestep.checkpoint import Description, check_same
from samestep.data import Rows, as_rows
from samestep.evaluate import evaluate
from samestep.job import Job
from samestep.metrics import Metric, accuracy, is_classification
from samestep.numerics import num_shards_of, shard_rows
from samestep.parallel.executor import Executor
from samestep.parallelize import Prepared, Shared, take_part, training_rows
from samestep.plan import Plan
from samestep.step import StepResult, run_step
from samestep.transport.base import Transport


class Training:
    """What one worker does with its parts. Every method must be called by all workers alike."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        prepared: Prepared,
        shared: Shared,
        transport: Transport,
        *,
        first_step: int = 0,
        allow_nan: bool = False,
    ) -> None:
        self.job, self.plan = job, plan
        self.step_number = first_step  # optimizer steps done
        self._order = None if job.data is None else job.row_order(training_rows(job).num_rows)
        self.num_steps = 0 if self._order is None else job.num_steps(self._order)
        self.executor: Executor = take_part(job, plan, prepared, shared, transport, first_step, allow_nan=allow_nan)
        self._seen = 0  # one byte per entry of the layout: whether it ever had a gradient
        self._held_out: Rows | None = None
        if job.evaluate is not None:
            self._held_out = as_rows(job.evaluate, "evaluate", job.seed, job.collate_fn, job.num_loader_workers)

    def step(self, stop_asked: bool = False) -> StepResult:
        """Train on the next batch."""
        assert self._order is not None, "the job has data"
        return self._step(self._order.batch_rows(self.step_number), stop_asked)

    def step_on(self, batch: Any) -> StepResult:
        """Train on a whole batch, the same on every worker: tensors with rows first, in any nest."""
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
        result = run_step(self.executor, self.step_number, rows, stop_asked)
        self.step_number += 1
        self._seen |= int.from_bytes(result.present, "little")
        return result

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

    def evaluate(self) -> dict[str, float]:
        """The metrics over the held-out rows; empty without any."""
        if self._held_out is None:
            return {}
        piece_rows = -(-self.job.batch_size // self.plan.numerics.shards)
        self.executor.share_values(everywhere=True)
        with self.executor.whole():
            return evaluate(
                self.executor.model,
                self.executor.objective,
                self._held_out,
                piece_rows,
                self._metrics(),
                self.executor.transport,
                self.plan.numerics.seed,
                self.step_number,
            )

    def digest(self) -> str:
        return snapshot.digest(self.executor, self.step_number)

    def save(self, root: Path, run: str) -> None:
        """Write a checkpoint under `root`; `run` names this run's temporary folder."""
        snapshot.save(self.executor, self.step_number, root, run, self.fingerprint())

    def restore(self, folder: Path, description: Description) -> list[str]:
        """Go on from a checkpoint; returns warnings. Raises CheckpointRefused when it is another job's."""
        warnings = check_same(description, self.fingerprint(), self.plan.numerics.line(), folder)
        snapshot.restore(self.executor, folder, description)
        return warnings

    def weights(self) -> dict[str, Tensor]:
        """All workers must call it; worker 0 gets them."""
        self.executor.share_values(everywhere=True)
        return snapshot.weights(self.executor) if self.executor.transport.rank == 0 else {}

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
