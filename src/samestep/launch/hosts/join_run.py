"""Train together with other workers that a launcher has started one by one, on this host and on others.

torchrun --nnodes 2 --nproc-per-node 2 ...        host a: workers 0, 1     host b: workers 2, 3
every process   finds the others (membership.py), builds job and model for itself, and checks that all
                have built the same
of one host     share memory (transport/rendezvous.py)
of several      join a process group of torch (transport/group_links.py)
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samestep.diagnose.stall import CONNECT
from samestep.errors import CheckpointRefused, PeerLost, PlanRefused, Refused, SamestepError, TrainingFailed
from samestep.job.job import Job
from samestep.job.report import Report
from samestep.launch.environment import World, building, let_cublas_repeat
from samestep.launch.failure import Event, error_from, failure_event
from samestep.launch.hosts.agree_on_plan import agree_on_plan
from samestep.launch.hosts.membership import (
    ANSWER_TIME,
    Membership,
    alone,
    assemble,
    check_alike,
    in_time,
    own_address,
    stores,
)
from samestep.launch.hosts.visible_state import VisibleWorker
from samestep.launch.request.request import Request
from samestep.launch.run.build import build
from samestep.launch.run.outcome import Outcome
from samestep.launch.run.worker import WorkerRun, work
from samestep.parallel.demand.workspace import mail_slots
from samestep.planner.search.decision import Decision
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.run_memory import RunMemory, bind, groups_that_meet, share
from samestep.state.checkpoint import remove_unfinished, temporary_of
from samestep.state.digest import Leaves, joint_digest, tensor_leaf
from samestep.system.device import check_device, take_device
from samestep.trace.whereabouts import Whereabouts
from samestep.transport.group_links import gloo_links
from samestep.transport.hosts import HostsTransport
from samestep.transport.links import Links
from samestep.transport.nccl_links import NcclLinks, has_nccl
from samestep.transport.rendezvous import Rendezvous
from samestep.transport.shared_fabric import SharedFabric
from samestep.transport.shared_memory import SharedTransport
from samestep.transport.staged_links import StagedLinks
from samestep.transport.transport import Transport

See = Callable[[Event, Outcome], None]
Show = Callable[[SamestepError], None]


@dataclass
class JoinedWorker:
    """One worker among the others, ready to take its part."""

    membership: Membership
    run: WorkerRun
    prepared: LaidOutModel
    shared: RunMemory
    transport: Transport


def train_together(request: Request, world: World | None, see: See, show: Show = lambda error: None) -> Report:
    """Run to the end, as one of the workers, or without a world as the only one.

    Raises Refused or TrainingFailed, in every worker its own.

    see: receives every event, in worker 0.
    show: receives a failure of this worker before the others do: after that, they end, and a launcher ends all.
    """
    outcome = Outcome()

    def take(event: Event, *files: int) -> None:
        outcome.take(event, list(files))
        if world is None or world.rank == 0:
            see(event, outcome)

    membership = gather(world, request)
    world = membership.world
    try:
        check_alike(membership)
        joined = join(membership, request, take)
        for rank, fact in enumerate(membership.facts):
            if rank != world.rank:
                take({"event": "up", "rank": rank, "pid": fact["pid"], "threads": joined.run.plan.numerics.threads})
        with stopping_on_signal(joined.run):
            work(joined.run, world.rank, joined.prepared, joined.shared, joined.transport)
        return outcome.conclude()
    except SamestepError as error:
        if outcome.failures and outcome.failures[0]["exit"] != Refused.exit_code:
            raise explain(outcome.failures[0], membership, show) from None
        error.is_repeated = not membership.is_first_report(str(error))
        raise
    finally:
        if outcome.finished is None:
            remove_unfinished(request.training.checkpoint, request.training.save, membership.facts[0]["run"])


def gather(world: World | None, request: Request) -> Membership:
    """Wait for all workers, on a device that this host has. Raises Refused or TrainingFailed."""
    check_device(request.planning.device)
    if request.planning.device == "cuda":
        let_cublas_repeat()
    return alone(request) if world is None else assemble(world, request, request.training.timeout)


def join(membership: Membership, request: Request, send: Callable[..., None], made: Job | None = None) -> JoinedWorker:
    """Build the job and connect this worker with the others. All workers must call it.

    made: a job that exists already.
    """
    world = membership.world
    asked, workers = request.planning, request.planning.workers
    if workers not in (None, 1) and membership.store is None:
        raise PlanRefused(
            f"--workers {workers}, and this process is alone: start as many, for instance with `torchrun "
            f"--nproc-per-node {workers} -m samestep train ... --device {asked.device}`, one for every GPU"
        )
    if workers not in (None, world.size):
        raise PlanRefused(
            f"--workers {workers}, and {world.launcher} has started {world.size} processes: leave --workers "
            f"out, or start {workers}"
        )
    if asked.transport == "threads" or asked.hosts is not None:
        raise PlanRefused(f"{world.launcher} says where the workers are: leave --transport and --hosts out")
    request = request.but(workers=world.size if asked.plan_text is None else None, run=membership.facts[0]["run"])
    decision = None
    try:
        if asked.plan == "auto" and asked.plan_text is None:
            request, decision, made = plan_together(membership, request, made)
        with building():
            run, prepared, _ = build(request, send, membership.hosts, made, decision)
    except BaseException as error:
        membership.report_built(f"{type(error).__name__}: {error}")
        if isinstance(error, Exception) and not isinstance(error, SamestepError):
            raise error_from(failure_event(error, None, None)) from None
        raise
    membership.report_built("")
    membership.await_built()
    run.is_joined = True
    start = initial_leaves(prepared)
    with connecting(membership):
        local, shared = meet(membership, run, prepared)
        if len(membership.on_this_host) == world.size:
            joint_digest(start, local)
            return JoinedWorker(membership, run, prepared, shared, local)
        with local.timesheet.whereabouts.during(CONNECT, 0):
            links = links_of(membership, request, whereabouts=local.timesheet.whereabouts)
        transport = HostsTransport(world.rank, membership.hosts, local, links, world.epoch)
        joint_digest(start, transport)
        check_shared_folder(membership, request, transport)
    return JoinedWorker(membership, run, prepared, shared, transport)


def plan_together(
    membership: Membership, request: Request, made: Job | None
) -> tuple[Request, Decision | None, Job | None]:
    """The request with the plan that all workers agree on (data parallelism where none is searched), and the job."""
    if made is not None or membership.store is None or request.planning.device != "cpu":
        return request.but(plan="data"), None, made

    def links() -> Links | None:
        several = len(membership.on_this_host) < membership.world.size
        return links_of(membership, request, "links of the planner") if several else None

    with connecting(membership):
        return agree_on_plan(membership, request, links)


def links_of(
    membership: Membership, request: Request, name: str = "links", whereabouts: Whereabouts | None = None
) -> Links:
    """gloo between CPUs; between GPUs NCCL, or gloo through the host's memory where workers share one."""
    world, timeout = membership.world, membership.timeout
    store = stores.PrefixStore(name, membership.store)
    links = gloo_links(store, world.rank, world.size, own_address(world), timeout)
    links.whereabouts = whereabouts or links.whereabouts
    if request.planning.device == "cpu":
        return links
    if membership.shares_devices or not has_nccl():
        return StagedLinks(links)
    return NcclLinks(links, store, world.size)


def check_shared_folder(membership: Membership, request: Request, transport: Transport) -> None:
    """Raises CheckpointRefused when a host does not see what worker 0 writes."""
    folder = request.training.checkpoint
    if folder is None:
        return
    mark = temporary_of(Path(folder), request.run)
    if transport.rank == 0:
        mark.mkdir(parents=True, exist_ok=True, mode=0o700)
    transport.exchange(b"")
    answers = transport.exchange(b"seen" if mark.is_dir() else b"")
    if transport.rank == 0:
        mark.rmdir()
    for rank, answer in enumerate(answers):
        if not answer:
            raise CheckpointRefused(
                f"--checkpoint {folder}: {membership.name(rank)} does not see what {membership.name(0)} "
                "writes there; name a folder that all hosts share, under the same path"
            )


def meet(membership: Membership, run: WorkerRun, prepared: LaidOutModel) -> tuple[SharedTransport, RunMemory]:
    """Share memory with the workers of this host. Raises PeerLost when one does not come."""
    try:
        return _meet(membership, run, prepared)
    except PeerLost as error:  # which numbers the workers of the host only
        raise PeerLost(membership.world.rank, membership.on_this_host[error.peer], error.why) from None


def _meet(membership: Membership, run: WorkerRun, prepared: LaidOutModel) -> tuple[SharedTransport, RunMemory]:
    ranks, rank, timeout = membership.on_this_host, membership.world.rank, membership.timeout
    number, door = ranks.index(rank), f"door {membership.hosts[rank]}"
    meeting = None
    if len(ranks) > 1 and number == 0:
        meeting = Rendezvous.open(len(ranks), lambda name: membership.store.set(door, name), timeout)
    elif len(ranks) > 1:
        name = in_time(lambda: membership.store.get(door).decode(), timeout + ANSWER_TIME)
        meeting = Rendezvous.join(name, number, len(ranks))
    groups = groups_on_host(groups_that_meet(prepared, run.plan), ranks)
    device = take_device(run.request.planning.device, membership.number_on_machine)
    private = None if device.type == "cpu" else device
    visible = None if len(ranks) == membership.world.size == 1 else VisibleWorker.of(membership, run.request, meeting)
    fabric = SharedFabric(len(ranks), groups, mail_slots(run.plan), meeting, private)
    shared = share(prepared, run.plan, fabric, ranks, fills=number == 0, for_any_assignment=run.rebalances)
    transport = fabric.endpoint(number, timeout)
    transport.number_in_run(ranks)
    if visible is not None:
        transport.timesheet.whereabouts, watcher = visible.begin()
        transport.when_closed += [] if watcher is None else [watcher]
    transport.fence()  # the initial values are there
    bind(prepared, shared)
    return transport, shared


def groups_on_host(groups: Mapping[tuple[int, ...], int], ranks: Sequence[int]) -> dict[tuple[int, ...], int]:
    """Parts of the groups that are on one host, in that host's own numbers. ranks: of the host's workers."""
    found: dict[tuple[int, ...], int] = {}
    for group, nbytes in groups.items():
        own = tuple(ranks.index(rank) for rank in group if rank in ranks)
        found[own] = max(nbytes, found.get(own, 0))
    return found


def initial_leaves(prepared: LaidOutModel) -> Leaves:
    """Digest leaves of the initial values, which must be equal: workers may have made different models, unseeded."""
    if prepared.initial is not None:
        return {}
    tensors = [*prepared.model.named_parameters(), *prepared.model.named_buffers()]
    tensors += [(entry.name, entry.param) for entry in prepared.layout.entries if entry.along is not None]
    whole = {id(entry.whole) for entry in prepared.layout.entries if entry.along is not None}
    return {f"initial {name}": tensor_leaf(tensor) for name, tensor in tensors if id(tensor) not in whole}


@contextlib.contextmanager
def stopping_on_signal(run: WorkerRun) -> Iterator[None]:
    """SIGTERM and Ctrl-C let a run with checkpoints write a last one; any other ends at once."""
    if threading.current_thread() is not threading.main_thread():  # of Ray Train, which takes signals itself
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, _frame: _stop(run, number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(run: WorkerRun, number: int) -> None:
    if run.request.training.checkpoint is not None and not run.stop_asked:
        run.stop_asked = True
        return
    remove_unfinished(run.request.training.checkpoint, run.request.training.save, run.request.run)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def explain(failure: Event, membership: Membership, show: Show = lambda error: None) -> SamestepError:
    """The exception for a worker's failure: names hosts, and the cause that another worker has reported."""
    own = membership.name(failure["rank"])
    if not failure["secondary"]:
        what = f"{failure['type']}: {failure['message']}" if failure["message"] else failure["type"]
        error = error_from({**failure, "name": own})
        show(error)
        membership.report_end(f"{own} failed at step {failure['step']}: {what}")
        membership.leave()
        return error
    text = failure["message"].replace(f"worker {failure['rank']} ", f"{own} ", 1)
    text = text.replace(f"worker {failure['peer']}", membership.name(failure["peer"]), 1)
    return lost(f"{text}, at step {failure['step']}", failure["peer"], membership)


def lost(text: str, peer: int, membership: Membership) -> TrainingFailed:
    """The exception of a worker that ends because it has lost another one."""
    membership.report_end(text, peer)
    cause = membership.cause(peer)
    membership.leave()
    return TrainingFailed(text + (f". {cause}" if cause else ""))


@contextlib.contextmanager
def connecting(membership: Membership) -> Iterator[None]:
    """Errors between workers before the first step name the workers and their hosts."""
    own = membership.name(membership.world.rank)
    try:
        yield
    except PeerLost as error:
        text = f"{own} lost {membership.name(error.peer)} before the first step: {error.why}"
        raise lost(text, error.peer, membership) from None
    except (RuntimeError, TimeoutError) as error:  # torch's
        raise TrainingFailed(
            f"{own} could not connect with all others within {membership.timeout:g} s "
            f"({str(error).splitlines()[0]}): see whether one of them has ended, and whether every host reaches the "
            "others' ports"
        ) from None
