"""Limits of the kernel's control groups on CPU time and memory, and their count of kills for memory; versions 1 and 2.

A limit holds for a group and all below it, so the least one on the way up counts. A container often sees
its own group as the root, and /proc/self/cgroup names a path that does not exist: then the groups above it are read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from samestep.system.procfs import text_of

N = TypeVar("N", int, float)

NO_LIMIT = 1 << 60  # version 1 writes a number near 2**63 for "none"


@dataclass(frozen=True)
class ControlGroup:
    """Limits of a process. version: None where there are no control groups. cores: of CPU time. memory: bytes."""

    version: int | None = None
    cores: float | None = None
    memory: int | None = None


def control_group(root: Path = Path("/")) -> ControlGroup:
    """The limits of this process; what cannot be read counts as no limit."""
    paths = dict(_paths(text_of(root / "proc/self/cgroup")))
    top = root / "sys/fs/cgroup"
    if (top / "cgroup.controllers").is_file():
        groups = list(_upwards(top, paths.get("", "/")))
        cores = [_quota(*text_of(group / "cpu.max").partition(" ")[::2]) for group in groups]
        memory = [_number(text_of(group / "memory.max")) for group in groups]
        return ControlGroup(2, _least(cores), _least(memory))
    cpu = list(_upwards(top / "cpu", paths.get("cpu", "/")))
    cores = [_quota(text_of(group / "cpu.cfs_quota_us"), text_of(group / "cpu.cfs_period_us")) for group in cpu]
    memories = _upwards(top / "memory", paths.get("memory", "/"))
    memory = [_number(text_of(group / "memory.limit_in_bytes")) for group in memories]
    version = 1 if (top / "cpu").is_dir() or (top / "memory").is_dir() else None
    return ControlGroup(version, _least(cores), _least([m for m in memory if m is not None and m < NO_LIMIT]))


class OutOfMemory:
    """Count of the processes killed because the control group of `pid`, or one above it, ran out of memory."""

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        paths, top = dict(_paths(text_of(root / f"proc/{pid}/cgroup"))), root / "sys/fs/cgroup"
        if "memory" in paths:  # version 1, where each group counts its own
            inside = PurePosixPath(paths["memory"].lstrip("/"))
            self._files = [top / "memory" / inside / "memory.oom_control", top / "memory" / "memory.oom_control"]
        else:
            self._files = [top / paths.get("", "/").lstrip("/") / "memory.events"]
        self._before = self._count()

    def has_killed(self) -> bool:
        """Whether a process of that group was killed for memory since this object was made."""
        return self._count() > self._before

    def _count(self) -> int:
        lines = [line.partition(" ") for file in self._files for line in text_of(file).splitlines()]
        return sum(int(number) for name, _, number in lines if name == "oom_kill" and number.strip().isdigit())


def _paths(text: str) -> Iterator[tuple[str, str]]:
    """Lines "4:cpu,cpuacct:/a/b" as (controller, path); version 2 has the controller ""."""
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield from ((controller, path) for controller in controllers.split(","))


def _upwards(top: Path, path: str) -> Iterator[Path]:
    inside = PurePosixPath(path.lstrip("/"))
    for group in (inside, *inside.parents):
        if ".." not in group.parts:
            yield top / group


def _quota(quota: str, period: str) -> float | None:
    """Cores: microseconds of CPU time per microseconds of time; "max" and -1 are none."""
    allowed, of = _number(quota), _number(period)
    return allowed / of if allowed is not None and of and allowed > 0 else None


def _number(text: str) -> int | None:
    return int(text) if text.strip().lstrip("-").isdigit() else None


def _least(values: Iterable[N | None]) -> N | None:
    return min((value for value in values if value is not None), default=None)
