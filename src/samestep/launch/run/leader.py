"""The leader of a run: builds the job once, forks the workers, watches over them.

It decides nothing about training. When a worker ends early, or the command does, it kills the others and removes
what was half-written.
"""

import copy
import json
import mmap
import os
import select
import signal
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from samestep.errors import JobRefused, PlanRefused
from samestep.launch.environment import building
from samestep.launch.failure import failure_event
from samestep.launch.request.request import Mode, Request
from samestep.launch.run.answers import ANSWERS
from samestep.launch.run.build import build
from samestep.launch.run.stall_watch import Member, StallWatch
from samestep.launch.run.worker import LOST_A_PEER, WorkerRun, in_memory, run_threads, run_worker
from samestep.parallel.demand.workspace import mail_slots
from samestep.parallel.gradients.stretches import by_host
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.parallelize import divide, prepare
from samestep.setup.run_memory import bind, groups_that_meet, share
from samestep.state.checkpoint import remove_unfinished
from samestep.system import heap, wire
from samestep.system.processes import die_on_word_from, fork, num_threads
from samestep.trace.whereabouts import SIZE
from samestep.transport.shared_fabric import SharedFabric
from samestep.transport.thread_hosts import ThreadHosts


def lead(message: dict[str, Any], events: socket.socket) -> int:
    """Train or answer, as a request message asks; returns the leader's exit status."""
    request = Request.from_json(message)
    try:
        if request.mode is not Mode.TRAIN:
            with die_on_word_from(events), building():
                answer = ANSWERS[request.mode](request, partial(wire.send, events))
            wire.send(events, {"event": "answer"}, in_memory(json.dumps(answer).encode()))
            return 0
        run, workers = start(request, events)
    except BaseException as error:  # noqa: BLE001 - reported to the command, whatever it is
        wire.send(events, failure_event(error, None, None))
        return 1
    watch_workers(workers, run, events)
    return 0


def start(request: Request, events: socket.socket) -> tuple[WorkerRun, list[int]]:
    """Build everything that workers share, then fork them. Returns their process ids too."""
    with die_on_word_from(events), building():
        run, prepared, pristine = build(request, partial(wire.send, events))
    refuse_threads()
    if pristine is not None:
        return run, fork_threads(run, prepared, pristine)
    return run, fork_processes(run, prepared)


def refuse_threads() -> None:
    """Raises JobRefused when this process, which is to be forked, has more than one thread."""
    if num_threads() > 1:
        raise JobRefused(
            f"the job's code started {num_threads() - 1} threads while it was imported or called; "
            "workers forked from a process with threads can hang: start threads in the data set or in forward instead"
        )


def fork_processes(run: WorkerRun, prepared: LaidOutModel) -> list[int]:
    if max(run.hosts) > 0:
        raise PlanRefused(
            "this command starts workers on this host only: let torchrun or srun start one command per worker on every "
            "host (docs/hosts.md), or see with `samestep plan --hosts` what they would do"
        )
    fabric = SharedFabric(run.plan.workers, groups_that_meet(prepared, run.plan), mail_slots(run.plan))
    shared = share(prepared, run.plan, fabric, for_any_assignment=run.rebalances)
    bind(prepared, shared)
    if run.request.training.stall:
        run.whereabouts = mmap.mmap(-1, SIZE * run.plan.workers)
        run.stacks = [os.memfd_create("samestep-stacks") for _ in range(run.plan.workers)]
    heap.before_fork()
    workers = [fork(partial(run_worker, run, rank, prepared, shared, fabric)) for rank in range(run.plan.workers)]
    fabric.close()
    return workers


def fork_threads(run: WorkerRun, prepared: LaidOutModel, pristine: nn.Module) -> list[int]:
    """One process, in which every worker is a thread with a model of its own."""
    known = {} if prepared.recipe is None else prepared.recipe.known
    copies = (prepare(run.job, copy.deepcopy(pristine)) for _ in range(1, run.plan.workers))
    models = [prepared, *(divide(run.job, run.plan, model, known) for model in copies)]
    fabric = ThreadHosts(run.hosts)
    near = by_host(range(run.plan.workers), run.hosts)
    shared = [
        share(prepared, run.plan, part, near[host], for_any_assignment=run.rebalances)
        for host, part in enumerate(fabric.fabrics)
    ]
    for model, host in zip(models, run.hosts, strict=True):
        bind(model, shared[host])
    return [fork(partial(run_threads, run, models, shared, fabric))]


@dataclass
class WatchedProcess:
    """One worker process; `rank` is None when all workers are threads of it."""

    rank: int | None
    pid: int
    pidfd: int


def watch_workers(pids: list[int], run: WorkerRun, events: socket.socket) -> None:
    """Wait until every worker has ended; kill the others when one fails, all when the command is gone.

    A worker that only lost a peer is no reason to kill: the peer's own end shows the cause, and may
    be seen later.
    """
    threads = run.plan.transport == "threads"
    alive = {
        (fd := os.pidfd_open(pid)): WatchedProcess(None if threads else rank, pid, fd) for rank, pid in enumerate(pids)
    }
    stalls = stall_watch(run, pids)
    listening = True
    killed = False
    while alive:
        patience = None if stalls is None or killed else stalls.due_in()
        ready, _, _ = select.select([*alive, *([events.fileno()] if listening else [])], [], [], patience)
        for worker in [alive.pop(fd) for fd in ready if fd in alive]:
            _, status = os.waitpid(worker.pid, 0)
            os.close(worker.pidfd)
            if stalls is not None and worker.rank is not None:
                stalls.forget(worker.rank)
            if not killed:
                _report_end(worker, status, run, stalls)
                killed = status != 0 and os.waitstatus_to_exitcode(status) != LOST_A_PEER
        if listening and events.fileno() in ready:
            command, _ = wire.receive(events)
            listening = command is not None
            if command is not None and command["command"] == "stop":
                _send_all(alive, signal.SIGTERM)
            else:
                killed = True
        if stalls is not None and not killed and not stalls.due_in():
            try:
                killed = report_stalls(stalls, run)
            except (OSError, ValueError, IndexError) as error:  # from reading /proc: no reason to end a run
                run.report("warning", text=f"stalls are not watched any more: {type(error).__name__}: {error}")
                stalls = None
        if killed:
            _send_all(alive, signal.SIGKILL)
    remove_unfinished(run.request.training.checkpoint, run.request.training.save, run.request.run)


def stall_watch(run: WorkerRun, pids: list[int]) -> StallWatch | None:
    """A watch for stalls; None where none is asked for, and for threads, which take turns by a baton."""
    if run.whereabouts is None:
        return None
    members = [Member(rank, rank, pid, run.stacks[rank], f"worker {rank}") for rank, pid in enumerate(pids)]
    return StallWatch(run.whereabouts, members, run.request.training.stall, run.request.run)


def report_stalls(stalls: StallWatch, run: WorkerRun) -> bool:
    """Report stalls. Returns whether the run must end, because no waiting helps. Raises OSError from /proc."""
    ends = False
    for text, stall in stalls.look():
        certain = stall is not None and stall.is_certain
        run.report("stall", text=text, kind=None if stall is None else stall.kind, ends=certain)
        ends |= certain
    return ends


def _report_end(worker: WatchedProcess, status: int, run: WorkerRun, stalls: StallWatch | None) -> None:
    """Report how a worker ended by itself; the command knows whether the worker has reported why."""
    step = min(run.done) if worker.rank is None else run.done[worker.rank]
    code, memory = os.waitstatus_to_exitcode(status), False
    if code == -signal.SIGKILL and worker.rank is not None and stalls is not None:
        memory = stalls.ran_out_of_memory(worker.rank)
    run.report("gone", rank=worker.rank, code=code, step=step, memory=memory)


def _send_all(alive: dict[int, WatchedProcess], number: signal.Signals) -> None:
    for worker in alive.values():
        os.kill(worker.pid, number)
