"""`samestep.Trainer`: a loop of the user's own, in a script of their own.

    trainer = samestep.Trainer(job)
    for step in trainer.steps():
        print(step.number, step.loss)

Started by hand the script is one worker. Started several times by torchrun, srun or another launcher,
every process of it is a worker, and each must make the same calls.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import nn

from samestep.errors import JobRefused, SamestepError
from samestep.job.job import Job
from samestep.job.scheduler import schedule_warning
from samestep.launch.environment import world
from samestep.launch.failure import failure_event
from samestep.launch.hosts.join_run import explain, gather, join
from samestep.launch.hosts.membership import Membership, check_alike
from samestep.launch.request.importing import call
from samestep.launch.request.known_kernels import untried_torch
from samestep.launch.request.options import JobSource
from samestep.launch.request.request import Request
from samestep.launch.run.worker import ends_of, training_of
from samestep.numerics import random_streams
from samestep.parallel.execution.step import StepResult
from samestep.plan.plan import Plan
from samestep.state.checkpoint import remove_unfinished, unfinished_file
from samestep.system import heap
from samestep.training import checkpoints
from samestep.training.own_batches import OwnLoop
from samestep.training.rehearsal import rehearse
from samestep.transport.transport import Transport


class Trainer:
    """One worker of a training whose loop the user writes.

    job: a `Job`, or a function that makes one, called under the job's seed.
    options: of `samestep.train`: plan, shards, slices, assign, threads, numerics, codec, sync, steps, epochs, seed,
        checkpoint, resume, change, allow_nan, memory_limit, rebalance, audit, device, settings, stall; and timeout,
        seconds that workers wait for one another.
    warnings: differences from the checkpoint that training goes on from; a torch that nobody has tried.

    Every method must be called by all workers alike. Raises Refused when the job, plan or checkpoint cannot be run, or
    when the workers are not alike; TrainingFailed when training fails, naming who. So does every method that computes:
    Disagreement where workers hold different values or make different calls, LossNotFinite, PeerLost.
    """

    def __init__(self, job: Job | Callable[..., Job], *, plan: Plan | str = "data", **options: Any) -> None:
        heap.keep_warm()
        found = world()
        request = request_for(job, plan, options)
        self._membership: Membership = gather(found, request)
        check_alike(self._membership)
        if isinstance(job, Job):
            made = job
        elif callable(job):
            random_streams.enter(request.numerics.seed or 0, "job")
            made = call(job, request.source)
        else:
            raise JobRefused(
                f"Trainer was given a {type(job).__name__}: give a samestep.Job, or a function that makes one"
            )
        self._joined = join(self._membership, request, lambda event, *files: None, made)
        run = self._joined.run
        torch.set_num_threads(run.plan.numerics.threads)
        self._step_number = run.first_step
        self._leave = weakref.finalize(self, leave, self._membership, self._joined.transport)
        self.warnings: list[str] = [text for text in [untried_torch(str(torch.__version__))] if text is not None]
        self._loop: OwnLoop | None = None
        with self._explaining():
            joined = self._joined
            self._training, _ = training_of(run, joined.prepared, joined.shared, joined.transport)
            if run.resumption is not None:
                self.warnings += checkpoints.restore(
                    self._training, run.resumption.folder, run.resumption.description, request.training.change or ()
                )
            self._loop = OwnLoop(self._training)
            warning = schedule_warning(made, self._training.executor.scheduler, self._training.order)
            self.warnings = [*self.warnings, *([warning] if warning else [])]

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._joined.transport.rank

    @property
    def size(self) -> int:
        """Number of workers."""
        return self._joined.transport.size

    @property
    def plan(self) -> Plan:
        return self._training.plan

    @property
    def model(self) -> nn.Module:
        """The whole trained model, with a plan that has no stages and slices. Not to be changed."""
        return self._training.executor.model

    @property
    def step_number(self) -> int:
        """Number of optimizer steps done."""
        return self._training.step_number

    @property
    def num_steps(self) -> int:
        """The length that the job asks for; 0 when it has no data of its own."""
        return self._training.num_steps

    def steps(self) -> Iterator[StepResult]:
        """Train on the job's own data to the job's own end; yields after every step. Raises JobRefused without data."""
        self._check_data()
        while self._training.step_number < self._training.num_steps:
            yield self.step()

    def step(self, batch: Any = None) -> StepResult:
        """Train on `batch`, the whole one and the same on every worker; without one, on the job's next batch.

        Generators of torch, NumPy and Python are afterwards as they were. Raises JobRefused where there is neither,
        where workers were given other batches, where steps on the job's batches and on others are mixed, and where the
        model was changed since the last step: buffers by a forward in train mode, gradients by a backward.
        """
        if batch is None:
            self._check_data()
        with self._explaining(), random_streams.kept():
            assert self._loop is not None
            self._loop.begin(batch)
            found = self._training.step() if batch is None else self._training.step_batch(batch)
            self._step_number = found.number + 1
            if self._step_number == self._joined.run.first_step + 1:
                rehearse(self._training.executor, ends_of(self._joined.run), self._step_number)
            return found

    def _check_data(self) -> None:
        if self._training.job.data is None:
            raise JobRefused("the job has no data to take steps over: give Job.data, or batches to Trainer.step")

    def evaluate(self) -> dict[str, float]:
        """The metrics over Job.evaluate."""
        with self._explaining(), random_streams.kept():
            return self._training.evaluation.after(self._training.step_number)

    def digest(self) -> str:
        """SHA-256 over the whole state."""
        with self._explaining():
            return checkpoints.digest(self._training)

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors; worker 0 writes, and raises OSError where it cannot."""
        with self._explaining():
            weights = checkpoints.weights(self._training)
            if self.rank == 0:
                temporary = unfinished_file(Path(path), self._joined.run.request.run)
                save_file(weights, temporary)
                temporary.replace(path)
            self._joined.transport.exchange(b"")

    def checkpoint(self, folder: str | Path) -> None:
        """Write the whole state, for `Trainer(..., checkpoint=folder, resume=True)` on any number of workers."""
        with self._explaining():
            checkpoints.save(self._training, Path(folder), self._joined.run.request.run)

    def close(self) -> None:
        """Leave the other workers."""
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not isinstance(error, SamestepError):
            self._membership.report_end(f"{self._membership.name(self.rank)} failed: {type(error).__name__}: {error}")
            self._leave.detach()
            self._joined.transport.close()
        self.close()

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """A failure names hosts and causes, and is reported to the others; so is a model changed between two calls."""
        try:
            if self._loop is not None:
                self._loop.check_left_alone()
            yield
            if self._loop is not None:
                self._loop.rest()
        except SamestepError as error:
            failure = failure_event(error, self.rank, self._step_number)
            self._leave.detach()
            self._joined.transport.close()
            request = self._joined.run.request
            remove_unfinished(request.training.checkpoint, None, request.run)
            raise explain(failure, self._membership) from None
        except BaseException as error:
            name = self._membership.name(self.rank)
            self._membership.report_end(f"{name} failed at step {self._step_number}: {type(error).__name__}: {error}")
            self._leave.detach()
            self._joined.transport.close()
            raise


def leave(membership: Membership, transport: Transport) -> None:
    """Leave the others and report it to them; called once, at the end of the process at the latest."""
    steps = transport.timesheet.whereabouts.done
    membership.report_end(
        f"{membership.name(transport.rank)} has let go of its trainer, or come to the end of its script, after step "
        f"{steps}: every worker must make as many calls as the others"
    )
    transport.close()


def request_for(job: Job | Callable[..., Job], plan: Plan | str, options: dict[str, Any]) -> Request:
    """The request of a script's own loop. Raises Refused for unknown options and for values that cannot be."""
    known = ("shards", "slices", "assign", "threads", "numerics", "codec", "sync", "steps", "epochs", "seed", "resume",
             "change", "checkpoint", "allow_nan", "memory_limit", "rebalance", "audit", "device", "settings",
             "timeout", "stall")  # fmt: skip
    if strange := sorted(set(options) - set(known)):
        raise JobRefused(f"Trainer has no option {', '.join(strange)}: it takes plan, {', '.join(known)}")
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    source = JobSource(
        file=None if script is None else str(Path(script).absolute()),
        settings=dict(options.pop("settings", None) or {}),
    )
    for name in ("assign", "change"):
        if options.get(name) is not None:
            options[name] = (options[name],) if isinstance(options[name], str) else tuple(options[name])
    if options.get("checkpoint") is not None:
        options["checkpoint"] = str(Path(options["checkpoint"]).absolute())
    return Request.made_here(source, plan, default_workers=1, plan_is_asked=False, **options)
