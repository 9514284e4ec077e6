"""Workers that a launcher has started find one another, and check that they are alike.

Each worker writes a few facts into the run's store and reads those of all others: who shares a host with whom,
and whether versions, settings and the job's file are the same. Keys begin with the run's name, its
epoch and the number of the call, so that no worker reads what an earlier start or call has left in the store.
"""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from samestep.errors import PlanRefused, Refused, TrainingFailed
from samestep.launch.environment import World, host_identity
from samestep.launch.request.known_kernels import known_kernels
from samestep.launch.request.request import Request
from samestep.numerics.numerics import differing_kinds
from samestep.plan.plan import workers_text
from samestep.state.checkpoint import finished
from samestep.system.device import instruction_set, num_devices

OWN = ("run", "folder", "path", "file", "default_workers", "plan")
"""Settings that may differ between the workers of a run: paths on each host. A plan file's text is compared."""


OWN_FACTS = ("host", "machine", "name", "pid", "run", "devices", "instruction set", "kernels")
"""Facts that may differ; kernels are compared kind by kind."""

T = TypeVar("T")
GIVE_UP = 5.0  # seconds between the starts of the first and the last worker
ANSWER_TIME = 1.0  # seconds in which a worker that ends can report why
stores: Any = dist  # torch does not list its stores among its public names
CALLS = itertools.count()
"""Number of runs in this process; names each run's keys apart."""
OPEN: dict[World, Any] = {}
"""Stores at which this process has met others before: worker 0 still holds them, and they meet there again."""


@dataclass
class Membership:
    """One worker's view of all workers of a run."""

    world: World
    store: Any
    facts: Sequence[dict[str, Any]]  # by rank
    timeout: float
    stall: float = 0.0  # seconds of waiting after which a worker prints for whom it waits; 0: never

    @property
    def hosts(self) -> tuple[int, ...]:
        """Host of each worker, numbered in the order of the ranks: those of one host share memory.

        A worker with a GPU shares none.
        """
        seen = list(dict.fromkeys(fact["host"] for fact in self.facts))
        return tuple(seen.index(fact["host"]) for fact in self.facts)

    @property
    def on_this_host(self) -> list[int]:
        """Ranks of the workers of this host."""
        return [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.world.rank]]

    @property
    def number_on_machine(self) -> int:
        """Number of workers on this worker's machine with a lower rank."""
        own = self.facts[self.world.rank]["machine"]
        return sum(fact["machine"] == own for fact in self.facts[: self.world.rank])

    @property
    def shares_devices(self) -> bool:
        """Whether on some machine there are more workers than GPUs."""
        machines = [fact["machine"] for fact in self.facts]
        return any(machines.count(fact["machine"]) > fact["devices"] for fact in self.facts)

    def name(self, rank: int) -> str:
        return f"worker {rank} on host {self.facts[rank]['name']}"

    def report_end(self, text: str, lost: int | None = None) -> None:
        """Report to the others why this worker ends, and which worker it had lost if that is why."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError, TimeoutError):
                in_time(lambda: self.store.set(f"end {self.world.rank}", json.dumps([text, lost])), ANSWER_TIME)

    def cause(self, lost: int) -> str | None:
        """Reported reason why a lost worker ended; if it had lost another one, the reason of that one."""
        if self.store is None:
            return None
        try:
            return in_time(lambda: self._first_reason(lost), 4 * ANSWER_TIME)
        except (RuntimeError, TimeoutError):
            if lost == 0 or self.world.joins_store:
                return None
            return f"{self.name(0)}, who keeps the store at which the workers meet, does not answer either"

    def leave(self) -> None:
        """End; worker 0, which keeps the store, stays until the others have read why all end, or had time to."""
        if self.store is None:
            return
        others = [f"left {rank}" for rank in range(1, self.world.size)]
        with contextlib.suppress(RuntimeError, TimeoutError):
            if self.world.rank != 0:
                in_time(lambda: self.store.set(f"left {self.world.rank}", ""), ANSWER_TIME)
            elif not self.world.joins_store:
                in_time(lambda: self.store.wait(others, timedelta(seconds=2 * ANSWER_TIME)), 3 * ANSWER_TIME)

    def _first_reason(self, lost: int | None) -> str | None:
        reason, asked = None, {self.world.rank}
        while lost is not None and lost not in asked:
            asked.add(lost)
            try:
                self.store.wait([f"end {lost}"], timedelta(seconds=ANSWER_TIME))
            except dist.DistStoreError:  # it was killed, or hangs
                break
            reason, lost = json.loads(self.store.get(f"end {lost}"))
        return reason

    def report_built(self, error: str) -> None:
        """Report to the others that this worker has built the job, or why it cannot."""
        if self.store is not None:
            self.store.set(f"built {self.world.rank}", error)

    def await_built(self) -> None:
        """Wait until all workers have built the job. Raises TrainingFailed with the reason of one that could not."""
        if self.store is None:
            return
        names = [f"built {rank}" for rank in range(self.world.size)]
        try:
            wait_for_all(self.store, names, self.world, self.timeout, self.stall, "build the job")
        except (RuntimeError, TimeoutError):
            missing = absent(self.store, names)
            raise TrainingFailed(
                f"worker {self.world.rank} has waited {self.timeout:g} s for {workers_text(missing)} to build the job: "
                "look for what is slow or hangs there; --timeout sets how long to wait"
            ) from None
        for rank, name in enumerate(names):
            if error := self.store.get(name).decode():
                raise TrainingFailed(f"{self.name(rank)} could not begin: {error}")

    def is_first_report(self, text: str) -> bool:
        """Whether no other worker has reported the same text."""
        if self.store is None:
            return True
        try:
            name = "said " + hashlib.sha256(text.encode()).hexdigest()
            return in_time(lambda: bool(self.store.add(name, 1) == 1), ANSWER_TIME)
        except (RuntimeError, TimeoutError):
            return True


def assemble(world: World, request: Request, timeout: float) -> Membership:
    """Wait for all workers. Raises Refused when they are not alike, TrainingFailed when some do not come."""
    store = stores.PrefixStore(f"samestep {world.run} {world.epoch} {next(CALLS)}", connect(world, timeout))
    store.set(f"facts {world.rank}", json.dumps(own_facts(request)))
    names = [f"facts {rank}" for rank in range(world.size)]
    try:
        wait_for_all(store, names, world, timeout, request.training.stall, "come")
    except (RuntimeError, TimeoutError):
        missing = absent(store, names)
        give_up(world, store, missing)
        raise TrainingFailed(
            f"worker {world.rank} has waited {timeout:g} s at {world.address}:{world.port} for "
            f"{workers_text(missing)} of {world.size}: see whether {world.launcher} has started all of them, and that "
            "every host reaches that address; --timeout sets how long to wait"
        ) from None
    facts = [json.loads(store.get(name)) for name in names]
    return Membership(world, store, facts, timeout, request.training.stall)


def alone(request: Request) -> Membership:
    """Membership of a single worker, started by hand."""
    return Membership(
        World("nobody", 0, 1, "", 0, "", 0, joins_store=False), None, [own_facts(request)], request.training.timeout
    )


def wait_for_all(store: Any, names: Sequence[str], world: World, timeout: float, stall: float, what: str) -> None:
    """Wait until all keys are in the store; after `stall` seconds the first worker prints who is missing."""
    first = min(stall * 0.75, timeout) if stall else timeout
    try:
        in_time(lambda: store.wait(names, timedelta(seconds=first)), first + ANSWER_TIME)
        return
    except (RuntimeError, TimeoutError):
        if first >= timeout:
            raise
    missing = absent(store, names)
    if world.rank == min(set(range(world.size)) - set(missing), default=0):
        print(
            f"worker {world.rank} has waited {first:.3g} s for {workers_text(missing)} of {world.size} to {what}, "
            f"and waits on until {timeout:g} s have passed",
            file=sys.stderr,
            flush=True,
        )
    rest = max(timeout - first, ANSWER_TIME)
    in_time(lambda: store.wait(names, timedelta(seconds=rest)), rest + ANSWER_TIME)


def absent(store: Any, names: Sequence[str]) -> list[int]:
    """Ranks of the workers whose key is not in the store; worker 0, when the store does not answer."""
    try:
        return in_time(lambda: [rank for rank, name in enumerate(names) if not store.check([name])], ANSWER_TIME) or [0]
    except (RuntimeError, TimeoutError):
        return [0]


def give_up(world: World, store: Any, missing: Sequence[int]) -> None:
    """Let the others look who is missing before worker 0 ends, and with it the store that no launcher holds."""
    with contextlib.suppress(RuntimeError, TimeoutError):
        in_time(lambda: store.set(f"gave up {world.rank}", ""), ANSWER_TIME)
        if world.rank == 0 and not world.joins_store:
            others = [f"gave up {rank}" for rank in range(1, world.size) if rank not in missing]
            if others:
                in_time(lambda: store.wait(others, timedelta(seconds=GIVE_UP)), GIVE_UP + ANSWER_TIME)


def in_time(ask: Callable[[], T], seconds: float) -> T:
    """Result of `ask`. Raises TimeoutError after `seconds`: a store whose server has stopped never answers."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def connect(world: World, timeout: float) -> Any:
    """The store at which the workers meet; worker 0 opens it, on that address alone, if there is none yet.

    Raises TrainingFailed when nobody answers there in time.
    """
    if dist.is_initialized() and dist.get_world_size() == world.size:  # by Ray Train, or the user's script
        store: Any = distributed_c10d._get_default_store()
        store = store.clone()  # a connection of its own, with a timeout of its own
        store.set_timeout(timedelta(seconds=timeout))
        return store
    if world in OPEN:
        return OPEN[world]
    end = time.monotonic() + timeout
    family, kind, _, _, place = look_up(world, end)
    opens = world.rank == 0 and not world.joins_store
    door = listening(world, family, kind, place) if opens else None
    try:
        if not opens:
            wait_for_door(family, kind, place, end)
        OPEN[world] = stores.TCPStore(
            world.address,
            world.port,
            is_master=opens,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=None if door is None else door.detach(),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise TrainingFailed(
            f"worker {world.rank} on host {socket.gethostname()} found nobody at {world.address}:{world.port} within "
            f"{timeout:g} s ({str(error).splitlines()[0]}): worker 0 must run at that address "
            "(MASTER_ADDR, MASTER_PORT)"
        ) from None
    return OPEN[world]


PAUSE = 0.05  # seconds between attempts


def look_up(world: World, end: float) -> tuple[Any, ...]:
    """Look up the address. Raises PlanRefused. The name of a new pod may not be known at once."""
    while True:
        try:
            return socket.getaddrinfo(world.address, world.port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            if world.launcher != "Kubernetes" or time.monotonic() > end:
                raise PlanRefused(
                    f"worker {world.rank} on host {socket.gethostname()} does not know the host {world.address} "
                    f"(MASTER_ADDR), where {world.launcher} lets the workers meet: {error.strerror or error}; set "
                    "MASTER_ADDR to an address of worker 0's host that every host knows"
                ) from None
        time.sleep(PAUSE)


def wait_for_door(family: int, kind: int, place: Any, end: float) -> None:
    """Wait until somebody listens there; torch's store would print pages of C++ frames. Raises OSError."""
    while True:
        with socket.socket(family, kind) as knock:
            knock.settimeout(max(end - time.monotonic(), PAUSE))
            try:
                return knock.connect(place)
            except OSError:
                if time.monotonic() > end:
                    raise
        time.sleep(PAUSE)


def listening(world: World, family: int, kind: int, place: Any) -> socket.socket:
    """A socket for the store. Raises PlanRefused when the address is not this host's or the port is taken."""
    door = socket.socket(family, kind)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(place)
        door.listen()
    except OSError as error:
        door.close()
        raise PlanRefused(
            f"worker 0 cannot listen at {world.address}:{world.port} (MASTER_ADDR, MASTER_PORT) on host "
            f"{socket.gethostname()}: {error.strerror or error}; name an address of worker 0's host and a free port"
        ) from None
    return door


def own_address(world: World) -> str:
    """The address of this host that leads to where the workers meet."""
    family, _, _, _, place = socket.getaddrinfo(world.address, world.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as end:
        end.connect(place)
        return str(end.getsockname()[0])


def own_facts(request: Request) -> dict[str, Any]:
    """Facts about this worker that the others compare with their own."""
    settings = {name: value for name, value in request.as_json().items() if name not in OWN}
    return {
        "host": host_identity() if request.planning.device == "cpu" else f"{host_identity()} {os.getpid()}",
        "machine": host_identity(),
        "name": socket.gethostname(),
        "pid": os.getpid(),
        "run": request.run,
        "samestep": version("samestep"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "instruction set": instruction_set(request.planning.device),
        "kernels": dict(known_kernels(request.planning.device).hashes),
        "devices": num_devices(request.planning.device),
        "job's file": None if request.source.file is None else file_fact(Path(request.source.file)),
        "last checkpoint": checkpoint_fact(request),
        **{f"setting {name}": value for name, value in settings.items()},
    }


def file_fact(path: Path) -> str:
    return f"{path.name} with hash {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def checkpoint_fact(request: Request) -> str | None:
    """The checkpoint from which this worker would go on: another one on another host would be another training."""
    if request.training.checkpoint is None or not (found := finished(Path(request.training.checkpoint))):
        return None
    return f"{found[-1].name}: {file_fact(found[-1] / 'checkpoint.json')}"


def check_alike(found: Membership) -> None:
    """Raises Refused with both sides where a worker differs from worker 0."""
    first = found.facts[0]
    for rank, fact in enumerate(found.facts):
        for name in first:
            if name == "kernels" and (kinds := differing_kinds(first[name], fact.get(name, {}))):
                raise Refused(
                    f"{found.name(rank)} ({fact['instruction set']}) gives other bits than {found.name(0)} "
                    f"({first['instruction set']}) in {', '.join(kinds)}: let all hosts have processors whose kernels "
                    "agree (`samestep doctor` shows them), or give both the same MKL_CBWR, ATEN_CPU_CAPABILITY and "
                    "ONEDNN_MAX_CPU_ISA"
                )
            if name not in OWN_FACTS and fact.get(name) != first[name]:
                raise Refused(
                    f"{found.name(rank)} has {name} {fact.get(name)}, {found.name(0)} has {first[name]}: "
                    "the bits would differ. Let all hosts have the same"
                )
