"""Facts of a machine that a bug report needs, as frozen values. Sizes are in bytes, speeds in bytes/s."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from samestep.plan.link_times import LinkTimes
from samestep.system.control_groups import ControlGroup


@dataclass(frozen=True)
class Processor:
    """Cores of this process. physical: those it may use. affinity: numbers of the logical ones it may run on."""

    model: str
    physical: int
    logical: int
    affinity: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Memory of the machine. shared: the size of /dev/shm, None without one."""

    total: int
    available: int
    shared: int | None
    shared_free: int | None


@dataclass(frozen=True)
class Limits:
    """Soft limits of this process, None for no limit. ports: first and last that the system gives to connections."""

    open_files: int | None
    processes: int | None
    locked_memory: int | None
    ports: tuple[int, int] | None
    loopback: bool


@dataclass(frozen=True)
class Launchers:
    """Launchers of distributed runs.

    seen: recognised by their variables. found: commands. world: this process's part in a run, or why it is refused.
    """

    seen: tuple[str, ...]
    found: tuple[str, ...]
    world: str


@dataclass(frozen=True)
class Interface:
    """A network interface. speed: bytes/s that its driver reports, None when it reports nothing."""

    name: str
    up: bool
    speed: float | None
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class MachineSpeed:
    """Measured speed. copy: bytes copied per second. products: FLOP/s of a float32 matrix product; one thread and all.

    isa: the instruction set that torch's kernels use. kernels: a hash of their bits for each kind of operation.
    links: times between two workers of this machine.
    gpus: name, memory and architecture of each.
    """

    isa: str
    threads: int  # number that "all" stands for
    mkl: bool
    onednn: bool
    copy: float
    copy_all: float
    products: float
    products_all: float
    links: LinkTimes
    gpus: tuple[str, ...]
    kernels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """All facts. versions: Python and packages, None for one that is not installed. measured: None when that failed."""

    versions: Mapping[str, str | None]
    system: str
    host: str
    processor: Processor
    control_group: ControlGroup
    memory: Memory
    limits: Limits
    mkl: str
    environment: Mapping[str, str]
    launchers: Launchers
    interfaces: tuple[Interface, ...]
    measured: MachineSpeed | None
    failure: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
