"""The one door to the outside: the process environment is read here and nowhere else."""

import contextlib
import os
from collections.abc import Iterator

import psutil

PINNED = {
    # One thread until a worker asks for more: a fork from a process with threads hangs.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Workers are CPU workers; a CUDA context does not survive a fork.
    "CUDA_VISIBLE_DEVICES": "",
    # Sets of strings iterate in the same order in every run.
    "PYTHONHASHSEED": "0",
    # Keep freed gradients and activations instead of returning them to the system every step.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
# Back them with huge pages where the system leaves that to the program: 8 % of the MLP's step.
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def server_environment() -> dict[str, str]:
    """What the fork server is started with: the user's environment, and what is pinned."""
    tunables = [text for text in (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES) if text]
    return {**os.environ, **PINNED, "GLIBC_TUNABLES": ":".join(tunables)}


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


def mkl_mode() -> str:
    """MKL's reproducibility mode, which is numerics."""
    return os.environ.get("MKL_CBWR", "default")


def physical_cores() -> int:
    """Physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
