"""A worker: take a part, train, report to the command."""

import contextlib
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save

from samestep.errors import PeerLost
from samestep.job.job import Job
from samestep.job.scheduler import schedule_warning
from samestep.launch.failure import Event, failure_event
from samestep.launch.request.importing import origin_of
from samestep.launch.request.request import Request
from samestep.launch.run.stall_watch import write_stacks_to
from samestep.parallel.execution.agreement import Settings
from samestep.plan.plan import Plan
from samestep.planner.search.decision import Decision
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.run_memory import RunMemory
from samestep.state.checkpoint import Description, unfinished_file
from samestep.sync.logical_workers import logical_of
from samestep.trace.clock import offsets, stamped
from samestep.trace.whereabouts import Whereabouts
from samestep.trace.worker_trace import WorkerTrace, encoded, last_steps
from samestep.training import checkpoints
from samestep.training.drift import Reassignment
from samestep.training.rehearsal import Ends, rehearse
from samestep.training.trainer import Training
from samestep.training.unused import Unused
from samestep.training.watched_training import Watch, watched_training
from samestep.transport.shared_fabric import SharedFabric
from samestep.transport.thread_hosts import ThreadHosts
from samestep.transport.transport import Transport
from samestep.verification.job.observer import EVALUATED, Observer
from samestep.verification.record import RecordWriter


class EventSender(Protocol):
    """Sends an event with open files that belong to it. Raises OSError when nobody listens any more."""

    def __call__(self, message: Event, /, *files: int) -> None: ...


LOST_A_PEER = 3  # exit status of a worker that ended because another one had
FLUSH = 0.1  # seconds of steps that are reported to the command together
UNUSED_AFTER = 10  # steps after which a parameter without gradient draws its warning


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run goes on from."""

    folder: Path
    description: Description

    @property
    def step(self) -> int:
        return self.description.step


@dataclass
class WorkerRun:
    """Values that all workers of a run share."""

    job: Job
    plan: Plan
    request: Request
    send: EventSender
    resumption: Resumption | None
    done: memoryview  # optimizer steps done by each worker, in memory that the leader sees
    hosts: tuple[int, ...]  # of every worker
    stop_asked: bool = False
    rebalances: bool = False  # whether shards are reassigned when workers' speeds change
    is_joined: bool = False  # each worker was started by itself, so none hears the events of all
    decision: Decision | None = None  # the planner's, if it was asked
    whereabouts: Any = None  # memory in which an observer sees the position of each worker
    stacks: Sequence[int] = ()  # files for the workers' stacks

    @property
    def first_step(self) -> int:
        """Optimizer steps that were done before this run."""
        return self.resumption.step if self.resumption else 0

    def report(self, event: str, *files: int, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more; the leader will end this process
            self.send({"event": event, **fields}, *files)


def run_worker(run: WorkerRun, rank: int, prepared: LaidOutModel, shared: RunMemory, fabric: SharedFabric) -> int:
    """A worker process after its fork; returns the exit status."""
    listen_for_stop(run)
    transport = fabric.endpoint(rank)
    if run.whereabouts is not None:
        transport.timesheet.whereabouts = Whereabouts(run.whereabouts, rank)
        write_stacks_to(run.stacks[rank])
    return work(run, rank, prepared, shared, transport)


def run_threads(
    run: WorkerRun, prepared: Sequence[LaidOutModel], shared: Sequence[RunMemory], fabric: ThreadHosts
) -> int:
    """The process in which all workers are threads. shared: the memory of each host that they simulate."""
    listen_for_stop(run)
    codes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda r=rank: codes.append(work(run, r, prepared[r], shared[run.hosts[r]], fabric.endpoint(r)))
        )
        for rank in range(run.plan.workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1 if 1 in codes else max(codes)


def listen_for_stop(run: WorkerRun) -> None:
    def ask(_signal: int, _frame: object) -> None:
        run.stop_asked = True

    signal.signal(signal.SIGTERM, ask)


def work(run: WorkerRun, rank: int, prepared: LaidOutModel, shared: RunMemory, transport: Transport) -> int:
    """Train as worker `rank`. A failure is reported to the command before the connections close."""
    reports = WorkerReports(run, rank)
    try:
        torch.set_num_threads(run.plan.numerics.threads)
        trainer, reports.reassignments = training_of(run, prepared, shared, transport)
        observer = None
        if run.request.training.record is not None:
            observer = Observer(trainer.executor, RecordWriter(Path(run.request.training.record), rank))
            trainer.attendants.add(observer)
            trainer.evaluation.on_evaluation(observer.evaluated, EVALUATED * run.job.batch_size)
        reports.step = run.done[rank] = run.first_step
        train(run, trainer, reports)
        if observer is not None:
            observer.finish(trainer.step_number)
    except BaseException as error:  # noqa: BLE001 - reported to the command, which decides what to print
        _ignore_loader_deaths()
        reports.failed(error)
        return LOST_A_PEER if isinstance(error, PeerLost) else 1
    finally:
        transport.close()
    return 0


def training_of(
    run: WorkerRun, prepared: LaidOutModel, shared: RunMemory, transport: Transport
) -> tuple[Training, Sequence[Reassignment]]:
    """One worker's training, and the reassignments of shards, which grow while it trains."""
    asked = run.request.training
    watch = Watch(
        audit=asked.audit_every,
        rebalance=run.rebalances,
        proves=asked.record is None,
        origin=origin_of(run.request.source),
    )
    training, reassignments = watched_training(
        run.job, run.plan, prepared, shared, transport, run.first_step, allow_nan=asked.allow_nan, watch=watch
    )
    if asked.record is None:  # records are compared to the end, and say more
        executor = training.executor
        executor.alike.facts.append(Settings(executor.optimizers()[0][0].optimizer))
    return training, reassignments


def ends_of(run: WorkerRun) -> Ends:
    """Files that the run is asked to leave behind."""
    asked = run.request.training
    return Ends(asked.checkpoint, asked.save, asked.want_weights)


def _ignore_loader_deaths() -> None:
    """Keep torch from raising in the main thread for a loader worker that dies while a failure is reported."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@dataclass
class WorkerReports:
    """Reports of a worker to the command; steps are bundled."""

    run: WorkerRun
    rank: int
    step: int = 0
    seconds: list[float] = field(default_factory=list)
    reassignments: Sequence[Reassignment] = ()  # grows while the worker trains
    _steps: list[tuple[int, float, float]] = field(default_factory=list)
    _timed: dict[int, float] = field(default_factory=dict)  # steps whose loss is not known yet
    _flushed: float = field(default_factory=time.monotonic)

    def up(self) -> None:
        self.run.report("up", rank=self.rank, pid=os.getpid(), threads=torch.get_num_threads())

    def add_step(self, step: int, seconds: float) -> None:
        self.step = self.run.done[self.rank] = step + 1
        self.seconds.append(seconds)
        self._timed[step] = seconds

    def add_losses(self, losses: Sequence[tuple[int, float]]) -> None:
        """Add losses that have become known, of this step and perhaps of earlier ones."""
        found = [(step, loss, self._timed.pop(step)) for step, loss in losses]
        if self.rank == 0 or self.run.is_joined:
            self._steps += found
            if time.monotonic() - self._flushed > FLUSH:
                self.flush()

    def add_reassignment(self, step: int) -> None:
        """Report that shards were reassigned before this step, if they were."""
        last = self.reassignments[-1] if self.reassignments else None
        if last is not None and last.step == step and (self.rank == 0 or self.run.is_joined):
            self.run.report("dealt", step=step, assign=last.assign, pace=last.pace)

    def flush(self) -> None:
        if self._steps:
            for at in range(0, len(self._steps), 1000):
                self.run.report("steps", steps=self._steps[at : at + 1000])
        self._steps, self._flushed = [], time.monotonic()

    def failed(self, error: BaseException) -> None:
        self.flush()
        with contextlib.suppress(OSError):
            self.run.send(failure_event(error, self.rank, self.step))


def train(run: WorkerRun, trainer: Training, reports: WorkerReports) -> None:
    """The loop over steps, with evaluation, callbacks and checkpoints between them."""
    root = None if run.request.training.checkpoint is None else Path(run.request.training.checkpoint)
    if run.resumption is not None:
        for warning in checkpoints.restore(
            trainer, run.resumption.folder, run.resumption.description, run.request.training.change or ()
        ):
            if reports.rank == 0:
                run.report("warning", text=warning)
    reports.up()
    evaluation, every = trainer.evaluation, run.request.training.every
    metrics: dict[str, float] = {}
    saved = trainer.step_number
    stopped, unused = False, None
    if reports.rank == 0 and (text := schedule_warning(run.job, trainer.executor.scheduler, trainer.order)):
        run.report("warning", text=text)
    with _callbacks(run, reports.rank) as callbacks:
        while trainer.step_number < trainer.num_steps and not stopped:
            began = time.perf_counter()
            result = trainer.step(run.stop_asked)
            reports.add_step(result.number, time.perf_counter() - began)
            stopped = result.stop
            reports.add_reassignment(result.number)
            known = result.known or (trainer.settle() if evaluation.is_due(trainer.step_number) else ())
            reports.add_losses(known)
            is_due = evaluation.is_due(trainer.step_number) and not stopped
            found = evaluation.after(trainer.step_number) if is_due else {}
            if found and reports.rank == 0:
                reports.flush()
                run.report("metrics", step=trainer.step_number, metrics=found)
            metrics = found or metrics
            with trainer.during("callback"):
                for number, loss in known:
                    for callback in callbacks:
                        callback(number, loss, found if number == result.number else {})
            if root is not None and every and trainer.step_number % every == 0:
                checkpoints.save(trainer, root, run.request.run)
                saved = trainer.step_number
            if trainer.step_number - run.first_step == 1:
                rehearse(trainer.executor, ends_of(run), trainer.step_number)
                if names := trainer.without_gradient():
                    unused = Unused(trainer.executor.model, names)
            if unused is not None and trainer.step_number - run.first_step == UNUSED_AFTER:
                _warn_unused(run, trainer, reports, unused)
        if unused is not None and trainer.step_number - run.first_step < UNUSED_AFTER:
            _warn_unused(run, trainer, reports, unused)
        known = trainer.settle()
        reports.add_losses(known)
        for number, loss in known:
            for callback in callbacks:
                callback(number, loss, {})
    if root is not None and saved != trainer.step_number:
        checkpoints.save(trainer, root, run.request.run)
    finish(run, trainer, reports, metrics, stopped=stopped)


@contextlib.contextmanager
def _callbacks(run: WorkerRun, rank: int) -> Iterator[Sequence[Any]]:
    """The job's callbacks, in worker 0; closed at the end, also after a failure."""
    callbacks = run.job.callbacks if rank == 0 else ()
    try:
        yield callbacks
    finally:
        for callback in callbacks:
            if hasattr(callback, "close"):
                callback.close()


def _warn_unused(run: WorkerRun, trainer: Training, reports: WorkerReports, unused: Unused) -> None:
    unused.end()
    names = trainer.without_gradient()
    if names and reports.rank == 0:
        run.report("warning", text=unused.warning(names))


def finish(
    run: WorkerRun, trainer: Training, reports: WorkerReports, metrics: dict[str, float], *, stopped: bool
) -> None:
    """Report digest, weights and times at the end."""
    digest = checkpoints.digest(trainer)
    sync = trainer.executor.report()
    transport = trainer.executor.transport
    own = {
        "rank": reports.rank,
        **{name: getattr(transport.timesheet, name) for name in ("compute", "communicate", "wait")},
        **asdict(transport.counted),
    }
    for text in transport.exchange(json.dumps(own).encode()) if run.is_joined else ():
        if (other := json.loads(text))["rank"] != reports.rank:
            run.report("worker", **other)
    run.report("worker", **own)
    if run.request.training.trace_steps is not None:
        report_trace(run, transport, run.request.training.trace_steps)
    reports.flush()
    weights = b""
    if run.request.training.save is not None or run.request.training.want_weights:
        weights = save(checkpoints.weights(trainer))
    if reports.rank != 0 and not run.is_joined:
        return
    if run.request.training.save is not None and reports.rank == 0:
        _write(Path(run.request.training.save), weights, run.request.run)
    files = [in_memory(weights)] if run.request.training.want_weights and reports.rank == 0 else []
    timed = reports.seconds[3:]
    typical = statistics.median if logical_of(run.plan) is None else statistics.fmean  # steps with a meeting are longer
    run.report(
        "finished",
        *files,
        digest=digest,
        metrics=metrics,
        **{"audits": 0, "epochs_proven": None, **trainer.attendants.report()},
        step=trainer.step_number,
        stopped=stopped,
        checkpoint=run.request.training.checkpoint is not None,
        seconds_per_step=typical(timed) if timed else None,
        sync=sync,
    )


def report_trace(run: WorkerRun, transport: Transport, steps: int) -> None:
    """Report the last steps, action by action. Worker 0 reports those of all joined workers, on its own clock."""
    host = run.hosts[transport.rank]
    trace = WorkerTrace(transport.rank, host, last_steps(transport.timesheet.ring, steps))
    if not run.is_joined:
        run.report("trace", in_memory(encoded(trace)), rank=trace.rank)
        return
    offset = offsets(stamped(transport.exchange), run.hosts)[host]
    own = encoded(replace(trace, clock_error=offset.error), -offset.seconds)
    for rank, text in enumerate(transport.exchange(own)):
        if transport.rank == 0:
            run.report("trace", in_memory(text), rank=rank)


def _write(path: Path, content: bytes, run: str) -> None:
    """Write whole or not at all; the process that watches the run removes what a kill leaves."""
    temporary = unfinished_file(path, run)
    temporary.write_bytes(content)
    temporary.replace(path)


def in_memory(content: bytes) -> int:
    """A file without a name, for the command."""
    handle = os.memfd_create("samestep-weights")
    with os.fdopen(os.dup(handle), "wb") as file:
        file.write(content)
    return handle
