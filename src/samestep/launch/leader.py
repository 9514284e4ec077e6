"""The leader of a run: builds the job once, forks the workers, watches over them.

It decides nothing about training. When a worker is gone before its end, or the command is, it kills
what is left and removes what was half-written.
"""

import copy
import json
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from samestep import heap, streams
from samestep.checkpoint import finished, read_description, remove_unfinished
from samestep.errors import CheckpointRefused, JobRefused, PlanRefused
from samestep.job import Job
from samestep.launch import wire
from samestep.launch.environment import building
from samestep.launch.importing import call, load_function
from samestep.launch.outcome import telling
from samestep.launch.processes import die_on_word_from, flush_output, leave, num_threads
from samestep.launch.request import Request
from samestep.launch.resolve import chosen_numerics, hosts_of, make_plan, with_numerics
from samestep.launch.worker import LOST_A_PEER, Resumption, Run, in_memory, run_threads, run_worker
from samestep.parallel.initial import Recording, record
from samestep.parallel.stretches import by_host
from samestep.parallel.update import implementation
from samestep.parallelize import Prepared, bind, divide, groups_that_meet, hollow, prepare, share, training_rows
from samestep.planned import check_memory, checked, footprints, outline
from samestep.presets import sliceable
from samestep.transport.shared import SharedFabric
from samestep.transport.thread_hosts import ThreadHosts


def lead(message: dict[str, Any], events: socket.socket) -> int:
    """Run one training from a request message; returns the leader's exit status."""
    request = Request(
        **{
            **message,
            "assign": None if message["assign"] is None else tuple(message["assign"]),
            "hosts": None if message["hosts"] is None else tuple(message["hosts"]),
        }
    )
    try:
        if request.only_outline:
            describe(request, events)
            return 0
        run, workers = start(request, events)
    except BaseException as error:  # noqa: BLE001 - everything is told to the command
        wire.send(events, telling(error, None, None))
        return 1
    watch(workers, run)
    return 0


def start(request: Request, events: socket.socket) -> tuple[Run, list[int]]:
    """Build everything that workers share, then fork them. Returns their process ids too."""
    with die_on_word_from(events), building():
        run, prepared, pristine = build(request, events)
    if pristine is not None:
        return run, fork_threads(run, prepared, pristine)
    return run, fork_processes(run, prepared)


def describe(request: Request, events: socket.socket) -> None:
    """Tell the command what the plan would be, and train nothing."""
    with die_on_word_from(events), building():
        run, prepared, _ = build(request, events)
        shards = run.plan.numerics.shards
        named = {layer for stage in run.plan.stages for layer, _ in stage.slices}
        reasons = sliceable(run.job, prepared.model, shards) if named else {}
        whole = {layer: reason for layer, reason in reasons.items() if reason is not None and layer not in named}
        found = outline(run.job, run.plan, prepared, whole, run.hosts)
    wire.send(events, {"event": "outline"}, in_memory(json.dumps(asdict(found)).encode()))


def build(request: Request, events: socket.socket) -> tuple[Run, Prepared, nn.Module | None]:
    """Everything that workers share; for threads also a copy of the model as it was first."""
    if request.memory_limit is not None:
        heap.keep_compact()
    os.chdir(request.folder)
    sys.path[:] = list(request.path)
    chosen = chosen_numerics(request)
    seed = chosen.get("seed", 0)
    streams.enter(seed, "job")
    job = with_numerics(call(load_function(request), request), chosen, request)
    streams.enter(job.seed, "model")
    initial = None if request.memory_limit is None else recorded(job, request)
    model = job.build_model() if initial is None else initial.model
    pristine = copy.deepcopy(model) if request.transport == "threads" else None
    prepared = prepare(job, model, initial)
    with hollow(prepared):
        plan = make_plan(job, chosen, request, implementation(prepared.optimizer), model)
    if plan.transport == "threads" and pristine is None:
        raise PlanRefused('a plan with transport = "threads" needs --transport threads on the command line as well')
    hosts = hosts_of(request, plan.workers)
    prepared = divide(job, plan, prepared)
    _, schedules = checked(job, plan, prepared)
    if request.memory_limit is not None:
        check_memory(footprints(job, plan, prepared, schedules, hosts), request.memory_limit)
    resumption = find_checkpoint(request)
    done = memoryview(mmap.mmap(-1, 8 * plan.workers)).cast("q")
    run = Run(job, plan, request, events, resumption, done, hosts)
    wire.send(events, announcement(run))
    if num_threads() > 1:
        raise JobRefused(
            f"the job's code started {num_threads() - 1} threads while it was imported or called; "
            "workers forked from a process with threads can hang: start threads in the data set or in forward instead"
        )
    return run, prepared, pristine


def recorded(job: Job, request: Request) -> Recording:
    """The model without memory, for a run in which no process may hold the whole of it."""
    if isinstance(job.model, nn.Module):
        raise JobRefused(
            f"Job.model is a {type(job.model).__name__} that exists already, and --memory-limit wants each worker to "
            "make its own parts: give a function that makes the model"
        )
    for asked, what in ((job.evaluate, "Job.evaluate"), (request.save, "--save")):
        if asked is not None:
            raise JobRefused(
                f"{what} needs the whole model in one worker, and --memory-limit is for models that do not fit there: "
                "leave one of them out (--checkpoint writes every worker's parts)"
            )
    if request.transport == "threads":
        raise PlanRefused("--memory-limit limits processes: leave --transport threads out")
    return record(job.build_model)


def announcement(run: Run) -> dict[str, Any]:
    job, plan = run.job, run.plan
    order = job.row_order(training_rows(job).num_rows)
    return {
        "event": "plan",
        "workers": plan.workers,
        "assign": list(plan.assign),
        "shards": plan.numerics.shards,
        "threads": plan.numerics.threads,
        "transport": plan.transport,
        "numerics": plan.numerics.line(),
        "plan": str(plan),
        "first_step": run.resumption.step if run.resumption else 0,
        "num_steps": job.num_steps(order),
        "batch_size": job.batch_size,
        "num_rows": order.num_rows,
        "batches_per_epoch": order.batches_per_epoch,
    }


def find_checkpoint(request: Request) -> Resumption | None:
    """The checkpoint to go on from. Raises CheckpointRefused for one that cannot be read."""
    if request.checkpoint is None:
        return None
    root = Path(request.checkpoint)
    found = finished(root)
    if not found:
        return None
    if not request.resume:
        raise CheckpointRefused(
            f"{root} holds checkpoints up to {found[-1].name}: go on from there with --resume, or name another folder"
        )
    return Resumption(found[-1], read_description(found[-1]))


def fork_processes(run: Run, prepared: Prepared) -> list[int]:
    if max(run.hosts) > 0:
        raise PlanRefused(
            "this command starts workers on this host only: let torchrun or srun start one command per worker on every "
            "host (docs/hosts.md), or see with `samestep plan --hosts` what they would do"
        )
    slots = 16 if len(run.plan.stages) > 1 else 2
    fabric = SharedFabric(run.plan.workers, groups_that_meet(prepared, run.plan), slots)
    shared = share(prepared, run.plan, fabric)
    bind(prepared, shared)
    heap.before_fork()
    workers = [_fork(partial(run_worker, run, rank, prepared, shared, fabric)) for rank in range(run.plan.workers)]
    fabric.close()
    return workers


def fork_threads(run: Run, prepared: Prepared, pristine: nn.Module) -> list[int]:
    """One process, in which every worker is a thread with a model of its own."""
    known = {} if prepared.way is None else prepared.way.known
    copies = (prepare(run.job, copy.deepcopy(pristine)) for _ in range(1, run.plan.workers))
    models = [prepared, *(divide(run.job, run.plan, model, known) for model in copies)]
    fabric = ThreadHosts(run.hosts)
    near = by_host(range(run.plan.workers), run.hosts)
    shared = [share(prepared, run.plan, part, near[host]) for host, part in enumerate(fabric.fabrics)]
    for model, host in zip(models, run.hosts, strict=True):
        bind(model, shared[host])
    return [_fork(partial(run_threads, run, models, shared, fabric))]


def _fork(work: Callable[[int], int]) -> int:
    """Fork a process that does `work(leader)` and exits with what it returns."""
    leader = os.getpid()
    flush_output()
    pid = os.fork()
    if pid == 0:
        try:
            code = work(leader)
        except BaseException:  # noqa: BLE001 - a forked process must not run on into the leader's code
            traceback.print_exc()
            code = 1
        leave(code)
    return pid


@dataclass
class Watched:
    """One worker process; `rank` is None when all workers are threads of it."""

    rank: int | None
    pid: int
    pidfd: int


def watch(pids: list[int], run: Run) -> None:
    """Until every worker is gone; kill the others when one fails, all when the command is gone.

    A worker that only lost a peer is no reason to kill: the peer's own end tells the cause, and may
    come to our ears later.
    """
    events, threads = run.events, run.plan.transport == "threads"
    alive = {(fd := os.pidfd_open(pid)): Watched(None if threads else rank, pid, fd) for rank, pid in enumerate(pids)}
    listening = True
    killed = False
    while alive:
        ready, _, _ = select.select([*alive, *([events.fileno()] if listening else [])], [], [])
        for worker in [alive.pop(fd) for fd in ready if fd in alive]:
            _, status = os.waitpid(worker.pid, 0)
            os.close(worker.pidfd)
            if not killed:
                _tell_end(worker, status, run)
                killed = status != 0 and os.waitstatus_to_exitcode(status) != LOST_A_PEER
        if listening and events.fileno() in ready:
            command, _ = wire.receive(events)
            listening = command is not None
            if command is not None and command["command"] == "stop":
                _send_all(alive, signal.SIGTERM)
            else:
                killed = True
        if killed:
            _send_all(alive, signal.SIGKILL)
    remove_unfinished(run.request.checkpoint, run.request.save, run.request.run)


def _tell_end(worker: Watched, status: int, run: Run) -> None:
    """How a process ended that was not told to; the command knows whether it had said why."""
    step = min(run.done) if worker.rank is None else run.done[worker.rank]
    run.tell("gone", rank=worker.rank, code=os.waitstatus_to_exitcode(status), step=step)


def _send_all(alive: dict[int, Watched], number: signal.Signals) -> None:
    for worker in alive.values():
        os.kill(worker.pid, number)
