"""Steps done again by one worker, to decide which of two copies of a state is right.

    the start, or a checkpoint from before the last good audit --steps of the run--> what every copy should be

Whoever does the work gives the same bits, so one worker alone finds what all should have. Nothing is kept for this
while a run is right; that a few seconds pass is no matter once it is wrong.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.numerics import random_streams
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.step import run_step
from samestep.plan.plan import Plan
from samestep.setup.parallelize import divide, prepare, take_part
from samestep.setup.run_memory import bind, share
from samestep.state import snapshot
from samestep.state.checkpoint import finished, read_description, step_of
from samestep.transport.threads import ThreadFabric


@dataclass(frozen=True)
class Base:
    """The state to begin from. folder: of the checkpoint; None: the initial values."""

    step: int = 0  # optimizer steps done
    folder: Path | None = None

    def __str__(self) -> str:
        return "the start" if self.folder is None else f"the checkpoint after step {self.step}"


@dataclass
class Replay:
    """Repeats steps of a run of `job`, whose model is made by a function and whose batches are its own.

    checkpoints: the folder of the run's own, if it has any.
    """

    job: Job
    plan: Plan
    checkpoints: Path | None = None

    def base(self, good: int) -> Base:
        """The last state there is from before step `good`, after which all copies were still equal."""
        there = [] if self.checkpoints is None else finished(self.checkpoints)
        bases = [Base(step_of(folder), folder) for folder in there]
        return max((base for base in bases if base.step <= good), key=lambda base: base.step, default=Base())

    def to(self, step: int, base: Base) -> tuple[Executor, Tensor]:
        """One worker after `step` steps, and the memory of its parameters. Raises what the job raises, and
        CheckpointRefused."""
        job, plan = dataclasses.replace(self.job, num_loader_workers=0), self.plan.on_one_worker()
        random_streams.enter(job.seed, "model")
        prepared = divide(job, plan, prepare(job, job.build_model()))
        fabric = ThreadFabric(1)
        shared = share(prepared, plan, fabric)
        bind(prepared, shared)
        executor = take_part(job, plan, prepared, shared, fabric.endpoint(0), base.step, allow_nan=True)
        if base.folder is not None:
            snapshot.restore(executor, base.folder, read_description(base.folder))
        order = job.row_order(training_rows(job).num_rows)
        for number in range(base.step, step):
            run_step(executor, number, order.batch_rows(number))
        return executor, shared.parameters
