"""The worker that holds up a run, and the reason: from views of all workers to one sentence.

    0 waits for 1, 1 waits for 2, 2 does not wait         2 is the culprit, 0 and 1 wait for it
    0 waits for 1, 1 waits for 0, in different calls      they will wait for ever: deadlock by order
    0 waits for 2, 2 waits for 0, in one call, 2 hosts    both are well: the link between them is not
                                                          (one may be a call ahead: its bytes are under way)

The kernel's account of a culprit shows what holds it, in the order of `Kind`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from samestep.diagnose.stacks import Frame
from samestep.plan.plan import workers_text
from samestep.trace.whereabouts import LEFT, NOBODY

CONNECT = "connect"  # the call in which workers of several hosts first reach one another
IDLE = 0.05  # cores: a process that uses less does not compute
SLOWER = 5.0  # times its usual seconds, from which on a worker is slow
ALIKE = 2.0  # the same ratio of the others, up to which it is not the machine that is slow
LEAST = 0.02  # seconds of a step below which other processes on the core make such a difference
WAITING = 0.5  # share of waiting from which on a worker is not the one that others wait for
FEW = 5  # steps before a worker's usual pace is known


class Kind(StrEnum):
    """Kind of thing that holds a culprit."""

    DEAD = "dead"
    MEMORY = "memory exhausted"
    STOPPED = "stopped"
    LINK = "link down"
    ORDER = "deadlock by order"
    APART = "in no call"
    LOADER = "loader stuck"
    LOCK = "lock held"
    IDLE = "idle"
    RUNNING = "running"
    SLOW = "slow"


CERTAIN = (Kind.DEAD, Kind.MEMORY, Kind.ORDER)
"""Kinds that no waiting ends."""


@dataclass(frozen=True)
class Process:
    """The kernel's view of a process, over the last moments."""

    pid: int = 0
    state: str = "S"  # R runs, S sleeps, D waits for a device, T stopped, Z ended; "gone"
    busy: float = 0.0  # cores
    has_run: bool = False  # whether it was running or ready when it was looked at
    asleep_in: str = ""  # the kernel's function
    frame: Frame | None = None  # where its code is
    in_lock: bool = False  # whether it is in one of Python's locks

    @property
    def is_gone(self) -> bool:
        return self.state in ("gone", "Z", "X")

    @property
    def is_stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def is_idle(self) -> bool:
        return self.busy < IDLE and not self.has_run


@dataclass(frozen=True)
class OwnWork:
    """Seconds of a worker's own work per step."""

    now: float
    usual: float
    waiting: float = 0.0  # share of its time that it waits

    @property
    def is_slow(self) -> bool:
        return self.ratio >= SLOWER and self.now >= LEAST and self.waiting < WAITING

    @property
    def ratio(self) -> float:
        return self.now / max(self.usual, 1e-9)


@dataclass(frozen=True)
class WorkerView:
    """Knowledge of one worker. Ages are in seconds."""

    rank: int
    name: str
    host: int = 0
    host_name: str = ""
    call: str = "step"
    calls: int = 0  # made so far, including this one
    step: int = 0
    number: int = 0  # actions entered
    done: int = 0
    action: str = ""
    still: float = 0.0  # seconds since it last entered something, began or ended waiting
    peer: int = NOBODY  # the worker it waits for
    waits: float = 0.0
    process: Process = Process()
    loaders: tuple[Process, ...] = ()
    in_loader: bool = False  # whether it waits for them
    out_of_memory: bool = False  # whether the kernel has killed for memory in its control group
    pace: OwnWork | None = None
    silent: float = 0.0  # since the last message from its host
    keeps_store: bool = False  # whether it keeps the store at which hosts meet, which can be reached and is silent

    @property
    def where(self) -> str:
        """The place of a worker in words: the call or action that it has entered."""
        if self.call in ("", LEFT):
            return f"no call of its trainer, after step {self.done}" if self.done else "no call of its trainer"
        if self.call != "step":
            return f"{self.call} after step {self.step}"
        return f"{self.action or 'the beginning'} of step {self.step}"


@dataclass(frozen=True)
class Stall:
    """One stall. kind: what holds the culprits. waiting: ranks that wait for them. text: a sentence for people."""

    kind: Kind
    culprits: tuple[int, ...]
    waiting: tuple[int, ...]
    text: str
    key: tuple[object, ...] = ()  # equal as long as it is the same stall

    @property
    def is_certain(self) -> bool:
        return self.kind in CERTAIN


def find(workers: Mapping[int, WorkerView], patience: float) -> Stall | None:
    """The stall of a run, None when it makes progress. patience: seconds after which waiting is no longer usual."""
    for worker in workers.values():
        if worker.process.is_gone and worker.out_of_memory and worker.call != LEFT:
            return culprit_stall(worker, Kind.MEMORY, workers)
        if worker.process.is_gone and worker.still >= patience and worker.call != LEFT:
            return culprit_stall(worker, Kind.DEAD, workers)
        if worker.call == CONNECT and worker.still >= patience:
            lost = next((one for one in workers.values() if one.silent >= patience), None)
            if lost is not None:
                return link_stall(worker, lost, ())
    late = [worker for worker in workers.values() if worker.peer != NOBODY and worker.waits >= patience]
    for worker in late:
        path = chain(worker, workers)
        last = path[-1]
        if last.peer != NOBODY and last.peer not in workers:
            continue  # it has just ended, or is unknown
        if (stopped := next((one for one in path if one.process.is_stopped), None)) is not None:
            return culprit_stall(stopped, Kind.STOPPED, workers) if stopped.still >= patience else None
        if (silent := next((at for at, one in enumerate(path) if one.silent >= patience / 2), None)) is not None:
            if path[silent].keeps_store:
                return culprit_stall(path[silent], Kind.STOPPED, workers)
            if silent == 0:
                continue  # its host is silent, so whom it waits for by now is unknown
            return link_stall(path[silent - 1], path[silent], blocked_by(path[silent], workers))
        if last.peer in [one.rank for one in path]:
            circle = path[[one.rank for one in path].index(last.peer) :]
            if all(one.waits >= patience for one in circle):
                return circle_stall(circle, workers)
            continue
        found = last_stall(last, workers, patience)
        if found is not None:
            return found
    for worker in workers.values():
        if worker.process.is_stopped and worker.still >= patience:
            return culprit_stall(worker, Kind.STOPPED, workers)
    if not late:
        for worker in workers.values():
            alone = worker.peer == NOBODY and worker.still >= patience and worker.call not in ("", LEFT)
            if alone and worker.process.is_idle and worker.silent == 0:
                return culprit_stall(worker, hold(worker), workers)
    return slowest(workers)


def chain(worker: WorkerView, workers: Mapping[int, WorkerView]) -> list[WorkerView]:
    """A worker, the one it waits for, and so on, up to one that does not wait or is in the chain already."""
    path = [worker]
    while path[-1].peer in workers and workers[path[-1].peer] not in path:
        path.append(workers[path[-1].peer])
    return path


def last_stall(last: WorkerView, workers: Mapping[int, WorkerView], patience: float) -> Stall | None:
    """The stall by a worker that others wait for and that does not wait itself."""
    if last.still >= patience:
        return culprit_stall(last, hold(last), workers)
    return culprit_stall(last, Kind.SLOW, workers) if is_slower(last, workers) else None


def hold(worker: WorkerView) -> Kind:
    """The kind of obstacle that holds a worker."""
    process = worker.process
    if process.is_gone:
        return Kind.DEAD
    if process.is_stopped:
        return Kind.STOPPED
    if worker.call in ("", LEFT):
        return Kind.APART
    if process.is_idle and worker.in_loader:
        return Kind.LOADER
    if not process.is_idle:
        return Kind.RUNNING
    return Kind.LOCK if process.in_lock or process.asleep_in.startswith("futex") else Kind.IDLE


def blocked_by(worker: WorkerView, workers: Mapping[int, WorkerView]) -> tuple[int, ...]:
    """Ranks that wait for a worker, directly or through others."""
    found = {worker.rank}
    while more := {one.rank for one in workers.values() if one.peer in found} - found:
        found |= more
    return tuple(sorted(found - {worker.rank}))


def slowest(workers: Mapping[int, WorkerView]) -> Stall | None:
    """The stall by a worker that takes much longer than before, though no other waits for it right now."""
    if sum(worker.pace is not None for worker in workers.values()) < 2:
        return None
    found = next((worker for worker in workers.values() if is_slower(worker, workers)), None)
    return None if found is None or found.process.is_stopped else culprit_stall(found, Kind.SLOW, workers)


def is_slower(worker: WorkerView, workers: Mapping[int, WorkerView]) -> bool:
    """Whether a worker is slower than before while the others are not: where all get slower, it is the machine."""
    others = [one.pace.ratio for one in workers.values() if one.pace is not None and one is not worker]
    return worker.pace is not None and worker.pace.is_slow and max(others, default=0.0) <= ALIKE


# ------------------------------------------------------------------------------------------------------ in words


def culprit_stall(worker: WorkerView, kind: Kind, workers: Mapping[int, WorkerView]) -> Stall:
    waiting = blocked_by(worker, workers)
    meets = next((one for one in workers.values() if one.peer == worker.rank), None)
    key = (kind, worker.rank) if kind == Kind.SLOW else (worker.rank, worker.number, worker.call)
    return Stall(
        kind, (worker.rank,), waiting, f"{worker.name} {complaint(worker, kind, meets)}{waiting_text(waiting)}", key
    )


def circle_stall(circle: Sequence[WorkerView], workers: Mapping[int, WorkerView]) -> Stall:
    """The stall of workers that wait for one another."""
    seconds = min(one.waits for one in circle)
    ranks = {one.rank for one in circle}
    waiting = tuple(sorted({rank for one in circle for rank in blocked_by(one, workers)} - ranks))
    calls = {(one.call, one.step) for one in circle}
    remote = [(one, workers[one.peer]) for one in circle if one.host != workers[one.peer].host]
    if remote and (len(calls) == 1 or len({one.calls for one in circle}) > 1):  # what lets one go on is under way
        return link_stall(*remote[0], waiting)
    places = ", ".join(f"{one.name} is in {one.where}" for one in sorted(circle, key=lambda one: one.rank))
    text = (
        f"{workers_text(ranks)} wait for one another for {seconds:.0f} s and always will: {places}. Every worker "
        f"must make the same calls in the same order{waiting_text(waiting, 'them')}"
    )
    return Stall(Kind.ORDER, tuple(sorted(ranks)), waiting, text, (Kind.ORDER, *sorted(ranks)))


def link_stall(one: WorkerView, other: WorkerView, waiting: tuple[int, ...]) -> Stall:
    """The stall of two workers of different hosts that both seem well."""
    first, last = sorted((one, other), key=lambda worker: worker.rank)
    if other.silent > 0:
        what = (
            f"{one.name} waits for {other.name} in {one.where} for {one.still:.0f} s, and nothing has been heard from "
            f"{other.host_name or f'host {other.host}'} for {other.silent:.0f} s: the link between the two hosts is "
            "down, or that host is"
        )
        own: tuple[int, ...] = (other.rank,)
    else:
        what = (
            f"{first.name} and {last.name} wait for one another in {first.where} for {min(first.waits, last.waits):.0f}"
            " s and both are well: what they send does not arrive, the link between their hosts is down"
        )
        own = (first.rank, last.rank)
    rest = tuple(rank for rank in waiting if rank not in (one.rank, other.rank))
    return Stall(Kind.LINK, own, waiting, what + waiting_text(rest, "them"), (Kind.LINK, *own))


def complaint(worker: WorkerView, kind: Kind, meets: WorkerView | None = None) -> str:
    """A worker's obstacle in words. meets: a worker that waits for it."""
    process, seconds = worker.process, worker.still
    missing = f"has not come through {worker.where}"
    if meets is not None and meets.call not in ("", LEFT):
        number = f"action {meets.number}, " if meets.call == "step" else ""
        missing = f"has not entered {number}{meets.where}"
    inside = f", in {worker.where}" if worker.call not in ("", LEFT) else ""
    match kind:
        case Kind.DEAD:
            return f"is dead: its process {process.pid} ended{inside}; look for what killed it"
        case Kind.MEMORY:
            return (
                f"is dead: the kernel killed its process {process.pid}{inside}, because the memory of its control group"
                " was exhausted; give it more, or the worker less to do"
            )
        case Kind.STOPPED if worker.keeps_store:
            return (
                f"is stopped, or its host cannot compute: the host answers, and {worker.name}, who keeps the store at "
                f"which the workers meet, has not for {worker.silent:.0f} s"
            )
        case Kind.STOPPED:
            return f"is stopped by a signal{inside}, for {seconds:.0f} s; `kill -CONT {process.pid}` lets it go on"
        case Kind.SLOW:
            assert worker.pace is not None
            return (
                f"is slow{inside}: a step takes it {spelled(worker.pace.now)} of its own and took it "
                f"{spelled(worker.pace.usual)} before{place_of(process)}"
            )
        case Kind.APART:
            return f"{missing}: it is in {worker.where}{place_of(process)}, {activity(process)} for {seconds:.0f} s"
        case Kind.LOADER:
            return f"waits for {loader_text(worker)}{inside}, for {seconds:.0f} s"
        case Kind.LOCK:
            return f"{missing}{place_of(process, worker)}, waiting for a lock for {seconds:.0f} s"
        case _:
            return f"{missing}{place_of(process, worker)}, {activity(process)} for {seconds:.0f} s"


def place_of(process: Process, worker: WorkerView | None = None) -> str:
    """The line of code; the action where the line is unknown."""
    if process.frame is not None:
        return f"; it is in {process.frame}"
    return "" if worker is None else f"; it is in {worker.where}"


def activity(process: Process) -> str:
    """The activity of a process, as the kernel reports it."""
    if process.state == "D":
        return "waiting for a device"
    if not process.is_idle:
        return "running"
    return f"asleep in {process.asleep_in}" if process.asleep_in else "asleep"


def loader_text(worker: WorkerView) -> str:
    """The loader process that holds its worker."""
    if not worker.loaders:
        return "its data loader"
    stopped = [one for one in worker.loaders if one.is_stopped]
    one = next(iter(stopped or [one for one in worker.loaders if one.frame is not None] or worker.loaders))
    if stopped:
        return f"its loader process {one.pid}, which is stopped by a signal (`kill -CONT {one.pid}` lets it go on)"
    where = f"is in {one.frame}, {activity(one)}" if one.frame is not None else f"is {activity(one)}"
    return f"its loader process {one.pid}, which {where}"


def waiting_text(waiting: Sequence[int], whom: str = "it") -> str:
    return f"; {workers_text(waiting)} wait{'s' * (len(waiting) == 1)} for {whom}" if waiting else ""


def spelled(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def aged(worker: WorkerView, seconds: float) -> WorkerView:
    """The view of a worker some seconds later."""
    waits = worker.waits + seconds if worker.peer != NOBODY else 0.0
    return replace(worker, still=worker.still + seconds, waits=waits)
