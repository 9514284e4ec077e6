"""The workers that a launcher has started find one another, and see that they are alike.

Everybody tells a few facts at the run's store and reads everybody else's: who shares a host with whom,
and whether versions, settings and the job's file are the same. Keys begin with the run's name, its
epoch and the number of the call, so that what an earlier start or call left in the store is not read.
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
from samestep.launch.request.request import Request
from samestep.state.checkpoint import finished
from samestep.system.device import instruction_set, num_devices

OWN = ("run", "folder", "path", "file", "default_workers", "plan")
"""What may differ between the workers of a run: where things lie on each host. A plan file's text is compared."""


T = TypeVar("T")
GIVE_UP = 5.0  # seconds by which workers may have been started one after the other
A_WORD = 1.0  # seconds in which a worker that ends can say why
stores: Any = dist  # torch does not list its stores among its public names
CALLS = itertools.count()
"""How often this process has trained: the next run reads nothing of the one before."""
OPEN: dict[World, Any] = {}
"""Where this process has met others before: worker 0 still holds that store, and they meet there again."""


@dataclass
class Membership:
    """One worker's view of all of them."""

    world: World
    store: Any
    facts: Sequence[dict[str, Any]]  # by rank
    timeout: float
    stall: float = 0.0  # seconds of waiting after which one says for whom; 0: never

    @property
    def hosts(self) -> tuple[int, ...]:
        """The host of every worker, numbered in the order in which they come: who shares memory.

        A worker with a GPU shares none.
        """
        seen = list(dict.fromkeys(fact["host"] for fact in self.facts))
        return tuple(seen.index(fact["host"]) for fact in self.facts)

    @property
    def near(self) -> list[int]:
        """The workers of this host."""
        return [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.world.rank]]

    @property
    def number_on_machine(self) -> int:
        """How many workers of this worker's machine come before it."""
        own = self.facts[self.world.rank]["machine"]
        return sum(fact["machine"] == own for fact in self.facts[: self.world.rank])

    @property
    def shares_devices(self) -> bool:
        """Whether on some machine there are more workers than GPUs."""
        machines = [fact["machine"] for fact in self.facts]
        return any(machines.count(fact["machine"]) > fact["devices"] for fact in self.facts)

    def name(self, rank: int) -> str:
        return f"worker {rank} on host {self.facts[rank]['name']}"

    def say_end(self, text: str, lost: int | None = None) -> None:
        """Tell the others why this worker ends, and whom it had lost if that is why."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError, TimeoutError):
                in_time(lambda: self.store.set(f"end {self.world.rank}", json.dumps([text, lost])), A_WORD)

    def cause(self, lost: int) -> str | None:
        """Why a worker ended that this one has lost, if it could say so; had it lost another one, that one's word."""
        if self.store is None:
            return None
        try:
            return in_time(lambda: self._last_word(lost), 4 * A_WORD)
        except (RuntimeError, TimeoutError):
            if lost == 0 or self.world.joins_store:
                return None
            return f"{self.name(0)}, who keeps the store at which the workers meet, does not answer either"

    def leave(self) -> None:
        """Worker 0 keeps the store: it stays until the others have read why all end, or could have."""
        if self.store is None:
            return
        others = [f"left {rank}" for rank in range(1, self.world.size)]
        with contextlib.suppress(RuntimeError, TimeoutError):
            if self.world.rank != 0:
                in_time(lambda: self.store.set(f"left {self.world.rank}", ""), A_WORD)
            elif not self.world.joins_store:
                in_time(lambda: self.store.wait(others, timedelta(seconds=2 * A_WORD)), 3 * A_WORD)

    def _last_word(self, lost: int | None) -> str | None:
        said, asked = None, {self.world.rank}
        while lost is not None and lost not in asked:
            asked.add(lost)
            try:
                self.store.wait([f"end {lost}"], timedelta(seconds=A_WORD))
            except dist.DistStoreError:  # it was killed, or hangs
                break
            said, lost = json.loads(self.store.get(f"end {lost}"))
        return said

    def say_built(self, error: str) -> None:
        """Tell the others that this worker has made the job its own, or why it cannot."""
        if self.store is not None:
            self.store.set(f"built {self.world.rank}", error)

    def await_built(self) -> None:
        """Until all have. Raises TrainingFailed with the reason of one that could not."""
        if self.store is None:
            return
        names = [f"built {rank}" for rank in range(self.world.size)]
        try:
            wait_for_all(self.store, names, self.world, self.timeout, self.stall, "build the job")
        except (RuntimeError, TimeoutError):
            missing = absent(self.store, names)
            raise TrainingFailed(
                f"worker {self.world.rank} has waited {self.timeout:g} s for {spelled(missing)} to build the job: look "
                "for what is slow or hangs there; --timeout sets how long to wait"
            ) from None
        for rank, name in enumerate(names):
            if error := self.store.get(name).decode():
                raise TrainingFailed(f"{self.name(rank)} could not begin: {error}")

    def is_first_to_say(self, text: str) -> bool:
        """Whether no other worker has said the same."""
        if self.store is None:
            return True
        try:
            name = "said " + hashlib.sha256(text.encode()).hexdigest()
            return in_time(lambda: bool(self.store.add(name, 1) == 1), A_WORD)
        except (RuntimeError, TimeoutError):
            return True


def assemble(world: World, request: Request, timeout: float) -> Membership:
    """Wait for all workers. Raises Refused when they are not alike, TrainingFailed when some do not come."""
    store = stores.PrefixStore(f"samestep {world.run} {world.epoch} {next(CALLS)}", connect(world, timeout))
    store.set(f"facts {world.rank}", json.dumps(facts_of(request)))
    names = [f"facts {rank}" for rank in range(world.size)]
    try:
        wait_for_all(store, names, world, timeout, request.training.stall, "come")
    except (RuntimeError, TimeoutError):
        missing = absent(store, names)
        give_up(world, store, missing)
        raise TrainingFailed(
            f"worker {world.rank} has waited {timeout:g} s at {world.address}:{world.port} for {spelled(missing)} of "
            f"{world.size}: see whether {world.launcher} has started all of them, and that every host reaches that "
            "address; --timeout sets how long to wait"
        ) from None
    facts = [json.loads(store.get(name)) for name in names]
    return Membership(world, store, facts, timeout, request.training.stall)


def alone(request: Request) -> Membership:
    """The only worker's: started by hand."""
    return Membership(
        World("nobody", 0, 1, "", 0, "", 0, joins_store=False), None, [facts_of(request)], request.training.timeout
    )


def wait_for_all(store: Any, names: Sequence[str], world: World, timeout: float, stall: float, what: str) -> None:
    """Until everybody's word is there. Says within `stall` seconds who is missing, and waits on; worker 0 says it."""
    first = min(stall * 0.75, timeout) if stall else timeout
    try:
        in_time(lambda: store.wait(names, timedelta(seconds=first)), first + A_WORD)
        return
    except (RuntimeError, TimeoutError):
        if first >= timeout:
            raise
    missing = absent(store, names)
    if world.rank == min(set(range(world.size)) - set(missing), default=0):
        print(
            f"worker {world.rank} has waited {first:.3g} s for {spelled(missing)} of {world.size} to {what}, and waits "
            f"on until {timeout:g} s have passed",
            file=sys.stderr,
            flush=True,
        )
    rest = max(timeout - first, A_WORD)
    in_time(lambda: store.wait(names, timedelta(seconds=rest)), rest + A_WORD)


def absent(store: Any, names: Sequence[str]) -> list[int]:
    """Whose word is not in the store; worker 0, when the store does not answer."""
    try:
        return in_time(lambda: [rank for rank, name in enumerate(names) if not store.check([name])], A_WORD) or [0]
    except (RuntimeError, TimeoutError):
        return [0]


def give_up(world: World, store: Any, missing: Sequence[int]) -> None:
    """The store is gone with worker 0, where no launcher holds it: the others look first who is missing."""
    with contextlib.suppress(RuntimeError, TimeoutError):
        in_time(lambda: store.set(f"gave up {world.rank}", ""), A_WORD)
        if world.rank == 0 and not world.joins_store:
            others = [f"gave up {rank}" for rank in range(1, world.size) if rank not in missing]
            if others:
                in_time(lambda: store.wait(others, timedelta(seconds=GIVE_UP)), GIVE_UP + A_WORD)


def in_time(ask: Callable[[], T], seconds: float) -> T:
    """What `ask` returns. Raises TimeoutError after so long: a store whose server has stopped is silent for ever."""
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


def spelled(ranks: Sequence[int]) -> str:
    return f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def connect(world: World, timeout: float) -> Any:
    """The store at which the workers meet; worker 0 opens it, on that address alone, if there is none yet.

    Raises TrainingFailed where nobody is found in time.
    """
    if dist.is_initialized() and dist.get_world_size() == world.size:  # by Ray Train, or the user's script
        store: Any = distributed_c10d._get_default_store()
        store = store.clone()  # a connection of its own, with a timeout of its own
        store.set_timeout(timedelta(seconds=timeout))
        return store
    if world in OPEN:
        return OPEN[world]
    end = time.monotonic() + timeout
    family, kind, _, _, place = resolved(world, end)
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


def resolved(world: World, end: float) -> tuple[Any, ...]:
    """What the address stands for. Raises PlanRefused. The name of a new pod may take its time to be known."""
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
    """Until somebody listens there; torch's store would print pages of C++ frames meanwhile. Raises OSError."""
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


def facts_of(request: Request) -> dict[str, Any]:
    """What this worker tells of itself."""
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
        "devices": num_devices(request.planning.device),
        "job's file": None if request.source.file is None else file_fact(Path(request.source.file)),
        "last checkpoint": checkpoint_fact(request),
        **{f"setting {name}": value for name, value in settings.items()},
    }


def file_fact(path: Path) -> str:
    return f"{path.name} with hash {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def checkpoint_fact(request: Request) -> str | None:
    """Where this worker would go on: another place on another host is another training."""
    if request.training.checkpoint is None or not (found := finished(Path(request.training.checkpoint))):
        return None
    return f"{found[-1].name}: {file_fact(found[-1] / 'checkpoint.json')}"


def check_alike(found: Membership) -> None:
    """Raises Refused with both sides where a worker differs from worker 0."""
    first = found.facts[0]
    for rank, fact in enumerate(found.facts):
        for name in first:
            if name not in ("host", "machine", "name", "pid", "run", "devices") and fact.get(name) != first[name]:
                raise Refused(
                    f"{found.name(rank)} has {name} {fact.get(name)}, {found.name(0)} has {first[name]}: "
                    "the bits would differ. Let all hosts have the same"
                )
