"""A worker's life: take a part, train, tell the command what happens."""

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
from samestep.launch.failure import Event, failure_event
from samestep.launch.request.request import Request
from samestep.launch.run.stall_watch import write_stacks_to
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
from samestep.training.trainer import Training
from samestep.training.watched_training import Watch, watched_training
from samestep.transport.shared_fabric import SharedFabric
from samestep.transport.thread_hosts import ThreadHosts
from samestep.transport.transport import Transport
from samestep.verification.job.observer import EVALUATED, Observer
from samestep.verification.record import RecordWriter


class EventSender(Protocol):
    """Takes an event, and open files that belong to it. Raises OSError when nobody listens any more."""

    def __call__(self, message: Event, /, *files: int) -> None: ...


LOST_A_PEER = 3  # exit status of a worker that ended because another one had
FLUSH = 0.1  # seconds of steps that are told to the command together
UNUSED_AFTER = 10  # steps after which a parameter without gradient draws its warning


@dataclass(frozen=True)
class Resumption:
    folder: Path
    description: Description

    @property
    def step(self) -> int:
        return self.description.step


@dataclass
class WorkerRun:
    """What all workers of a run know."""

    job: Job
    plan: Plan
    request: Request
    send: EventSender
    resumption: Resumption | None
    done: memoryview  # optimizer steps done by each worker, in memory that the leader sees
    hosts: tuple[int, ...]  # of every worker
    stop_asked: bool = False
    rebalances: bool = False  # whether shards are reassigned when workers' speeds change
    apart: bool = False  # every worker was started by itself: nobody hears them all
    decision: Decision | None = None  # of the planner, where it was asked
    seen: Any = None  # memory in which others see where each worker is
    stacks: Sequence[int] = ()  # files for the workers' stacks

    def tell(self, event: str, *files: int, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more; the leader will end this process
            self.send({"event": event, **fields}, *files)


def run_worker(run: WorkerRun, rank: int, prepared: LaidOutModel, shared: RunMemory, fabric: SharedFabric) -> int:
    """A worker process from fork to exit status."""
    listen_for_stop(run)
    transport = fabric.endpoint(rank)
    if run.seen is not None:
        transport.timesheet.whereabouts = Whereabouts(run.seen, rank)
        write_stacks_to(run.stacks[rank])
    return work(run, rank, prepared, shared, transport)


def run_threads(
    run: WorkerRun, prepared: Sequence[LaidOutModel], shared: Sequence[RunMemory], fabric: ThreadHosts
) -> int:
    """The process in which all workers are threads. shared: the memory of each host that they pretend to be on."""
    listen_for_stop(run)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda r=rank: codes.append(_work_as_thread(run, r, prepared[r], shared, fabric)))
        for rank in range(run.plan.workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1 if 1 in codes else max(codes)


def _work_as_thread(
    run: WorkerRun, rank: int, prepared: LaidOutModel, shared: Sequence[RunMemory], fabric: ThreadHosts
) -> int:
    return work(run, rank, prepared, shared[run.hosts[rank]], fabric.endpoint(rank))


def listen_for_stop(run: WorkerRun) -> None:
    def ask(_signal: int, _frame: object) -> None:
        run.stop_asked = True

    signal.signal(signal.SIGTERM, ask)


def work(run: WorkerRun, rank: int, prepared: LaidOutModel, shared: RunMemory, transport: Transport) -> int:
    """Train as worker `rank`. A failure is told to the command before the connections close."""
    diary = Diary(run, rank)
    try:
        torch.set_num_threads(run.plan.numerics.threads)
        first_step = run.resumption.step if run.resumption else 0
        trainer, reassignments = watched_training(
            run.job,
            run.plan,
            prepared,
            shared,
            transport,
            first_step,
            allow_nan=run.request.training.allow_nan,
            watch=Watch(audit=run.request.training.audit_every, rebalance=run.rebalances),
        )
        diary.reassignments = reassignments
        observer = None
        if run.request.training.record is not None:
            observer = Observer(trainer.executor, RecordWriter(Path(run.request.training.record), rank))
            trainer.attendants.add(observer)
            trainer.evaluation.on_evaluation(observer.evaluated, EVALUATED * run.job.batch_size)
        diary.step = run.done[rank] = first_step
        train(run, trainer, diary)
        if observer is not None:
            observer.finish(trainer.step_number)
    except BaseException as error:  # noqa: BLE001 - told to the command, which decides what to print
        _no_more_news_of_loaders()
        diary.failed(error)
        return LOST_A_PEER if isinstance(error, PeerLost) else 1
    finally:
        transport.close()
    return 0


def _no_more_news_of_loaders() -> None:
    """torch raises wherever the main thread is when a loader worker dies; not while a failure is told."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@dataclass
class Diary:
    """What a worker tells the command; steps in bundles."""

    run: WorkerRun
    rank: int
    step: int = 0
    seconds: list[float] = field(default_factory=list)
    reassignments: Sequence[Reassignment] = ()  # grows while the worker trains
    _steps: list[tuple[int, float, float]] = field(default_factory=list)
    _timed: dict[int, float] = field(default_factory=dict)  # steps whose loss is not known yet
    _flushed: float = field(default_factory=time.monotonic)

    def up(self) -> None:
        self.run.tell("up", rank=self.rank, pid=os.getpid(), threads=torch.get_num_threads())

    def stepped(self, step: int, seconds: float) -> None:
        self.step = self.run.done[self.rank] = step + 1
        self.seconds.append(seconds)
        self._timed[step] = seconds

    def learned(self, losses: Sequence[tuple[int, float]]) -> None:
        """What the losses of steps were, of this one and perhaps of earlier ones."""
        found = [(step, loss, self._timed.pop(step)) for step, loss in losses]
        if self.rank == 0 or self.run.apart:
            self._steps += found
            if time.monotonic() - self._flushed > FLUSH:
                self.flush()

    def reassigned(self, step: int) -> None:
        """Report that shards were reassigned before this step, if they were."""
        last = self.reassignments[-1] if self.reassignments else None
        if last is not None and last.step == step and (self.rank == 0 or self.run.apart):
            self.run.tell("dealt", step=step, assign=last.assign, pace=last.pace)

    def flush(self) -> None:
        if self._steps:
            for at in range(0, len(self._steps), 1000):
                self.run.tell("steps", steps=self._steps[at : at + 1000])
        self._steps, self._flushed = [], time.monotonic()

    def failed(self, error: BaseException) -> None:
        self.flush()
        with contextlib.suppress(OSError):
            self.run.send(failure_event(error, self.rank, self.step))


def train(run: WorkerRun, trainer: Training, diary: Diary) -> None:
    """The loop over steps, with what is due between them."""
    root = None if run.request.training.checkpoint is None else Path(run.request.training.checkpoint)
    if run.resumption is not None:
        for warning in checkpoints.restore(trainer, run.resumption.folder, run.resumption.description):
            if diary.rank == 0:
                run.tell("warning", text=warning)
    diary.up()
    evaluation = trainer.evaluation
    metrics: dict[str, float] = {}
    saved = trainer.step_number
    stopped = False
    with _callbacks(run, diary.rank) as callbacks:
        while trainer.step_number < trainer.num_steps and not stopped:
            began = time.perf_counter()
            result = trainer.step(run.stop_asked)
            diary.stepped(result.number, time.perf_counter() - began)
            stopped = result.stop
            diary.reassigned(result.number)
            known = result.known or (trainer.settle() if evaluation.is_due(trainer.step_number) else ())
            diary.learned(known)
            is_due = evaluation.is_due(trainer.step_number) and not stopped
            found = evaluation.after(trainer.step_number) if is_due else {}
            if found and diary.rank == 0:
                diary.flush()
                run.tell("metrics", step=trainer.step_number, metrics=found)
            metrics = found or metrics
            with trainer.during("callback"):
                for number, loss in known:
                    for callback in callbacks:
                        callback(number, loss, found if number == result.number else {})
            if (
                root is not None
                and run.request.training.every
                and trainer.step_number % run.request.training.every == 0
            ):
                checkpoints.save(trainer, root, run.request.run)
                saved = trainer.step_number
            if trainer.step_number - (run.resumption.step if run.resumption else 0) == UNUSED_AFTER:
                _warn_unused(run, trainer, diary)
        if trainer.step_number - (run.resumption.step if run.resumption else 0) < UNUSED_AFTER:
            _warn_unused(run, trainer, diary)
        known = trainer.settle()
        diary.learned(known)
        for number, loss in known:
            for callback in callbacks:
                callback(number, loss, {})
    if root is not None and saved != trainer.step_number:
        checkpoints.save(trainer, root, run.request.run)
    finish(run, trainer, diary, metrics, stopped=stopped)


def _a_step(seconds: Sequence[float], plan: Plan) -> float:
    """The median; of local steps the mean, since those that end in a meeting are longer."""
    return (statistics.median if logical_of(plan) is None else statistics.fmean)(seconds)


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


def _warn_unused(run: WorkerRun, trainer: Training, diary: Diary) -> None:
    names = trainer.without_gradient()
    if names and diary.rank == 0:
        few = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        run.tell("warning", text=f"no gradient so far for {few}: forward does not use it, so the optimizer skips it")


def finish(run: WorkerRun, trainer: Training, diary: Diary, metrics: dict[str, float], *, stopped: bool) -> None:
    """Digest, weights, and how the time went."""
    digest = checkpoints.digest(trainer)
    sync = trainer.executor.report()
    transport = trainer.executor.transport
    own = {
        "rank": diary.rank,
        **{name: getattr(transport.timesheet, name) for name in ("compute", "communicate", "wait")},
        **asdict(transport.counted),
    }
    for text in transport.exchange(json.dumps(own).encode()) if run.apart else ():
        if (other := json.loads(text))["rank"] != diary.rank:
            run.tell("worker", **other)
    run.tell("worker", **own)
    if run.request.training.trace_steps is not None:
        tell_trace(run, transport, run.request.training.trace_steps)
    diary.flush()
    weights = b""
    if run.request.training.save is not None or run.request.training.want_weights:
        weights = save(checkpoints.weights(trainer))
    if diary.rank != 0 and not run.apart:
        return
    if run.request.training.save is not None and diary.rank == 0:
        _write(Path(run.request.training.save), weights, run.request.run)
    files = [in_memory(weights)] if run.request.training.want_weights and diary.rank == 0 else []
    timed = diary.seconds[3:]
    run.tell(
        "finished",
        *files,
        digest=digest,
        metrics=metrics,
        **{"audits": 0, "epochs_proven": None, **trainer.attendants.report()},
        step=trainer.step_number,
        stopped=stopped,
        checkpoint=run.request.training.checkpoint is not None,
        seconds_per_step=_a_step(timed, run.plan) if timed else None,
        sync=sync,
    )


def tell_trace(run: WorkerRun, transport: Transport, steps: int) -> None:
    """The last steps, action by action. Of workers that were started apart, worker 0 tells all, on its own clock."""
    host = run.hosts[transport.rank]
    trace = WorkerTrace(transport.rank, host, last_steps(transport.timesheet.ring, steps))
    if not run.apart:
        run.tell("trace", in_memory(encoded(trace)), rank=trace.rank)
        return
    offset = offsets(stamped(transport.exchange), run.hosts)[host]
    own = encoded(replace(trace, clock_error=offset.error), -offset.seconds)
    for rank, text in enumerate(transport.exchange(own)):
        if transport.rank == 0:
            run.tell("trace", in_memory(text), rank=rank)


def _write(path: Path, content: bytes, run: str) -> None:
    """Whole or not at all; whoever watches the run removes what a kill leaves."""
    temporary = unfinished_file(path, run)
    temporary.write_bytes(content)
    temporary.replace(path)


def in_memory(content: bytes) -> int:
    """A file without a name, to be passed to the command."""
    handle = os.memfd_create("samestep-weights")
    with os.fdopen(os.dup(handle), "wb") as file:
        file.write(content)
    return handle
