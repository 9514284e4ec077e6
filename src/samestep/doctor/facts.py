"""What a bug report needs to say of a machine, as frozen values. Sizes are in bytes, speeds in bytes/s."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samestep.doctor.machine_speed import MachineSpeed
from samestep.system.control_groups import ControlGroup


@dataclass(frozen=True)
class Processor:
    """physical: cores that this process may use. affinity: numbers of the logical ones that it may run on."""

    model: str
    physical: int
    logical: int
    affinity: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """shared: the size of /dev/shm, None without one."""

    total: int
    available: int
    shared: int | None
    shared_free: int | None


@dataclass(frozen=True)
class Limits:
    """Soft limits of this process; None: none. ports: that the system gives to connections, first and last."""

    open_files: int | None
    processes: int | None
    locked_memory: int | None
    ports: tuple[int, int] | None
    loopback: bool


@dataclass(frozen=True)
class Launchers:
    """seen: by their variables. found: commands. world: how this process takes part, or what speaks against it."""

    seen: tuple[str, ...]
    found: tuple[str, ...]
    world: str


@dataclass(frozen=True)
class Interface:
    """speed: bytes/s as its driver says, None when it says nothing."""

    name: str
    up: bool
    speed: float | None
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """versions: of Python and packages, None for one that is not installed. measured: None when that failed."""

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
