"""Inspection of this machine: facts that the system reports, and speeds that a process of their own measures.

Facts that cannot be read are left out, not guessed. No torch is imported here.
"""

import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from samestep.doctor.facts import Facts, Interface, Launchers, Limits, MachineSpeed, Memory, Processor
from samestep.errors import PlanRefused, SamestepError
from samestep.launch.environment import (
    ROOT,
    launchers_seen,
    mkl_mode,
    physical_cores,
    pinned_environment,
    shown_variables,
    starters_found,
    world,
)
from samestep.system.control_groups import control_group
from samestep.system.json_values import value_from

PACKAGES = ("samestep", "torch", "numpy", "safetensors", "click", "rich", "psutil", "pyarrow", "tensorboard")
PROGRAM = "import sys; sys.path.append(sys.argv[1]); from samestep.doctor.measure_speed import main; main()"
PATIENCE = 60.0  # seconds; it takes about four


def inspect_machine(measured: MachineSpeed | None, failure: str | None = None, root: Path = Path("/")) -> Facts:
    """All facts of this machine. root: the folder of proc, sys and dev."""
    return Facts(
        versions={"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}, {' '.join(platform.libc_ver())}",
        host=platform.node(),
        processor=_processor(root),
        control_group=control_group(root),
        memory=_memory(root),
        limits=_limits(root),
        mkl=mkl_mode(),
        environment=shown_variables(),
        launchers=Launchers(launchers_seen(), starters_found(), _world()),
        interfaces=_interfaces(),
        measured=measured,
        failure=failure,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor(root: Path) -> Processor:
    named = [line for line in _lines(root / "proc/cpuinfo") if line.startswith(("model name", "Model", "cpu\t"))]
    model = named[0].partition(":")[2].strip() if named else platform.processor() or "unknown"
    affinity = tuple(sorted(os.sched_getaffinity(0)))
    return Processor(model, physical_cores(), psutil.cpu_count() or len(affinity), affinity)


def _memory(root: Path) -> Memory:
    memory = psutil.virtual_memory()
    try:
        shared = psutil.disk_usage(str(root / "dev/shm"))
    except OSError:
        return Memory(memory.total, memory.available, None, None)
    return Memory(memory.total, memory.available, shared.total, shared.free)


def _limits(root: Path) -> Limits:
    numbers = [int(text) for line in _lines(root / "proc/sys/net/ipv4/ip_local_port_range") for text in line.split()]
    loopback = psutil.net_if_stats().get("lo")
    return Limits(
        open_files=_soft(resource.RLIMIT_NOFILE),
        processes=_soft(resource.RLIMIT_NPROC),
        locked_memory=_soft(resource.RLIMIT_MEMLOCK),
        ports=(numbers[0], numbers[1]) if len(numbers) == 2 else None,
        loopback=loopback is not None and loopback.isup,
    )


def _soft(kind: int) -> int | None:
    limit, _ = resource.getrlimit(kind)
    return None if limit == resource.RLIM_INFINITY else limit


def _world() -> str:
    try:
        others = world()
    except PlanRefused as refused:
        return f"would be refused: {refused}"
    if others is None:
        return "nobody has started others beside it"
    return f"worker {others.rank} of {others.size} that {others.launcher} has started"


def _interfaces() -> tuple[Interface, ...]:
    addresses = psutil.net_if_addrs()
    return tuple(
        Interface(
            name,
            found.isup,
            found.speed * 1e6 / 8 if found.speed else None,  # Mbit/s; 0 when the driver does not report it
            tuple(each.address for each in addresses.get(name, ()) if each.family.name in ("AF_INET", "AF_INET6")),
        )
        for name, found in psutil.net_if_stats().items()
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def measure_in_own_process() -> MachineSpeed:
    """Measure this machine. Raises SamestepError with the last line of a measuring process that fails."""
    ours, theirs = os.pipe()
    with os.fdopen(ours) as answer:
        arguments = [str(ROOT), str(theirs), str(physical_cores()), str(os.getpid())]
        try:
            ended = subprocess.run(
                [sys.executable, "-P", "-c", PROGRAM, *arguments],
                env=pinned_environment(),
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SamestepError(f"measuring took more than {PATIENCE:g} s: is the machine busy?") from None
        finally:
            os.close(theirs)
        if ended.returncode != 0:
            last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
            raise SamestepError(f"the process that measures ended: {last}")
        speed: MachineSpeed = value_from(MachineSpeed, json.loads(answer.read()))
        return speed
