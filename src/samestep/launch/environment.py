"""The process environment, which is read in this file only."""

import contextlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from samestep.errors import PlanRefused

ROOT = Path(__file__).parents[2]
"""The folder of the package, which may be importable only from where the command was given."""

PINNED = {
    # One thread until a worker asks for more: a fork from a process with threads hangs.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's heap would start a thread when it is imported
    # Sets of strings iterate in the same order in every run.
    "PYTHONHASHSEED": "0",
    # torch's stores and sockets log while they wait; our own messages say what that means.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # Keep freed gradients and activations instead of returning them to the system every step.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
# Back them with huge pages where the system leaves that to the program: 8 % of the MLP's step.
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def pinned_environment() -> dict[str, str]:
    """The user's environment with the pinned variables."""
    tunables = [text for text in (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES) if text]
    return {**os.environ, **PINNED, "GLIBC_TUNABLES": ":".join(tunables)}


def server_environment() -> dict[str, str]:
    """Environment of the fork server. Its workers are CPU workers; a CUDA context does not survive a fork."""
    return pinned_environment() | {"CUDA_VISIBLE_DEVICES": ""}


WARM_HEAP = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def bare_environment(threads: int, *, warm_heap: bool) -> dict[str, str]:
    """Environment of plain PyTorch in comparisons: torch's defaults, `threads` threads, no network.

    warm_heap: set the heap as for our own workers.
    """
    ours = (*PINNED, *WORLD)
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    env |= {name: PINNED[name] for name in ("PYTHONHASHSEED", "TORCH_CPP_LOG_LEVEL")}
    if warm_heap:
        pinned = pinned_environment()
        env |= {name: pinned[name] for name in (*WARM_HEAP, "GLIBC_TUNABLES")}
    return env


def own_environment() -> dict[str, str]:
    """Environment of a process that starts runs of ours."""
    return dict(os.environ)


def let_cublas_repeat() -> None:
    """Fix the workspace of cuBLAS before its first product: without that, it does not repeat its bits."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


BUILDING = "SAMESTEP_BUILDING"


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Inside, the user's code is imported and called to build a job; its child processes know it too."""
    os.environ[BUILDING] = "1"
    try:
        yield
    finally:
        del os.environ[BUILDING]


def is_building() -> bool:
    """Whether this code runs only because workers import it."""
    return BUILDING in os.environ


@dataclass(frozen=True)
class World:
    """Facts that a launcher gives about the processes that it has started."""

    launcher: str
    rank: int
    size: int
    address: str  # where the workers first meet, and the port
    port: int
    run: str  # name of the run, equal in all of them
    epoch: int  # number of earlier starts of this run
    joins_store: bool  # whether the launcher holds a store there


def world() -> World | None:
    """This process among those of a launcher; None without one. Raises PlanRefused when variables are missing."""
    return world_of(os.environ)


SLURM_PORTS = range(20_000, 30_000)  # below those that the system gives to connections of its own


def world_of(env: Mapping[str, str]) -> World | None:
    """Read the variables of torch (torchrun, Ray Train and others), srun, or Kubernetes' trainer (one process per pod).

    Raises PlanRefused for a pod that is to run several processes.
    """
    run, epoch = env.get("TORCHELASTIC_RUN_ID", "none"), int(env.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if "RANK" in env or "WORLD_SIZE" in env:
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "the environment"
        rank, size, address, port = _required(env, launcher, ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
        store = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return _world(launcher, rank, size, (address, port), run, epoch, joins_store=store)
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        rank, size, job, nodes = _required(
            env, "srun", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "SLURM_STEP_NODELIST"]
        )
        run = f"{job}.{env['SLURM_STEP_ID']}"
        port = env.get("MASTER_PORT", str(SLURM_PORTS[int(job) % len(SLURM_PORTS)]))
        epoch = int(env.get("SLURM_RESTART_COUNT", "0"))
        address = env.get("MASTER_ADDR", first_node(nodes))
        return _world("srun", rank, size, (address, port), run, epoch)
    if "PET_NNODES" in env and env["PET_NNODES"] != "1":
        if env.get("PET_NPROC_PER_NODE", "1") != "1":
            raise PlanRefused(
                f"the pod is to run {env['PET_NPROC_PER_NODE']} processes (PET_NPROC_PER_NODE) and this is one: let "
                "torchrun start them, `torchrun -m samestep train ...`; it reads the same variables"
            )
        names = ["PET_NODE_RANK", "PET_NNODES", "PET_MASTER_ADDR", "PET_MASTER_PORT"]
        rank, size, address, port = _required(env, "Kubernetes", names)
        return _world("Kubernetes", rank, size, (address, port), run, epoch)
    return None


def _world(
    launcher: str, rank: str, size: str, place: tuple[str, str], run: str, epoch: int, *, joins_store: bool = False
) -> World:
    address, port = place
    return World(
        launcher, _whole_number(rank), _whole_number(size), address, _whole_number(port), run, epoch, joins_store
    )


def unused_launcher() -> str | None:
    """A warning when this process is alone inside a job of SLURM with several tasks."""
    inside = "SLURM_JOB_ID" in os.environ  # perhaps in its interactive step, which is one task
    if world() is None and inside and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and shutil.which("srun"):
        return (
            f"this job of SLURM has {os.environ['SLURM_NTASKS']} tasks, and this command is none of them: it uses this "
            "host only. Start it with srun to use them all"
        )
    return None


def first_node(nodes: str) -> str:
    """First host of a SLURM list: rack[1-2]n[03-07,9],other gives rack1n03."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", found[0]) if found else nodes


def _required(env: Mapping[str, str], launcher: str, names: list[str]) -> list[str]:
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise PlanRefused(
            f"{launcher} has set {', '.join(name for name in names if name not in missing) or 'nothing'} and not "
            f"{', '.join(missing)}: set {'it' if len(missing) == 1 else 'them'} too, or start the workers with torchrun"
        )
    return [env[name] for name in names]


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PlanRefused(f"the launcher's variables have {text!r} where a number belongs") from None


def is_pinned() -> bool:
    """Whether this process has the pinned variables."""
    return all(os.environ.get(name) == value for name, value in PINNED.items())


def start_again_pinned() -> None:
    """Replace this process by the same command in the pinned environment; its launcher sees no difference."""
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], pinned_environment())


def host_identity() -> str:
    """Identity that is equal for processes that can share memory and reach one another's sockets without a network."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/net').stat().st_ino} {Path('/proc/self/ns/ipc').stat().st_ino}"


SHOWN = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_PROC_BIND"),
    *("OMP_PLACES", "OMP_WAIT_POLICY", "KMP_AFFINITY", "KMP_BLOCKTIME", "GOMP_CPU_AFFINITY", "ATEN_CPU_CAPABILITY"),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "LD_PRELOAD"),
    *("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "PYTHONHASHSEED"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"),
    *("SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    *("SLURM_CPUS_PER_TASK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    *("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK"),
)
"""Variables whose values a bug report may show: numbers and modes, no names, addresses or keys of anybody."""

LAUNCHERS = {
    "torchrun": "TORCHELASTIC_RUN_ID",
    "SLURM": "SLURM_JOB_ID",
    "Open MPI": "OMPI_COMM_WORLD_RANK",
    "Ray": "RAY_JOB_ID",
    "Kubernetes": "KUBERNETES_SERVICE_HOST",
    "Kubernetes' trainer": "PET_NNODES",
}
"""Launchers, and a variable that each sets for what it starts."""

STARTERS = ("torchrun", "srun", "mpirun", "ray", "kubectl")


def shown_variables(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables of the environment that may be shown."""
    return {name: env[name] for name in SHOWN if name in env}


def launchers_seen(env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Launchers that have started this process, according to its environment."""
    return tuple(launcher for launcher, name in LAUNCHERS.items() if name in env)


def starters_found() -> tuple[str, ...]:
    """Commands of launchers that are installed on this machine."""
    return tuple(name for name in STARTERS if shutil.which(name))


KERNEL_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ONEDNN_MAX_CPU_ISA"),
    *("DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_DEFAULT_FPMATH_MODE", "MKL_DYNAMIC", "LD_PRELOAD"),
)
"""Variables by which torch and its libraries choose kernels."""


def kernel_variables() -> dict[str, str]:
    """The variables that choose kernels, as far as they are set."""
    return {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ}


def mkl_mode() -> str:
    """MKL's reproducibility mode, which is part of the numerics."""
    return os.environ.get("MKL_CBWR", "default")


def physical_cores() -> int:
    """Number of physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def cache_folder() -> Path:
    """Folder for measurements of this machine."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "samestep"


def processor() -> str:
    """Name and number of the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def machine_name() -> str:
    """The host's name in the letters that a cluster file allows."""
    return re.sub(r"[^\w.-]", "-", platform.node()) or "host"
