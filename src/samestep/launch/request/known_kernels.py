"""Knowledge of this machine's kernels, computed once and kept in the machine's cache: fingerprint, broken promises.

It is kept under everything that it may depend on: processor, torch's build, the variables that libraries choose kernels
by, and the precision of products. To compute it takes less than a second, to look it up less than a millisecond.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from samestep.errors import PlanRefused
from samestep.launch.environment import cache_folder, kernel_variables
from samestep.numerics.kernel_fingerprint import VERSION, kernel_hashes
from samestep.numerics.kernel_promises import PROMISES, broken_promises
from samestep.system.device import instruction_set

OF_PROCESSOR = (
    "vendor_id",
    "cpu family",
    "model",
    "stepping",
    "microcode",
    "cache size",
    "flags",
    "Features",
    "CPU part",
)
TRIED = ((2, 12), (2, 14))
"""The lowest and the highest torch that samestep was tried with."""


@dataclass(frozen=True)
class KnownKernels:
    """hashes: of each kind of operation. broken: promises that do not hold."""

    hashes: Mapping[str, str]
    broken: Sequence[str] = ()


@functools.cache
def known_kernels(device: str) -> KnownKernels:
    """Knowledge of the kernels; of a GPU its name."""
    if device != "cpu":
        return KnownKernels({"GPU": instruction_set(device)})
    path = cache_folder() / f"kernels-{_key()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = KnownKernels(**json.loads(path.read_text()))
        if found.hashes and all(isinstance(text, str) for text in found.hashes.values()):
            return found
    known = KnownKernels(kernel_hashes(), broken_promises())
    with contextlib.suppress(OSError):  # it is computed again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(known)))
        unfinished.replace(path)
    return known


def check_promises(known: KnownKernels) -> None:
    """Raises PlanRefused where bits would depend on who computes what."""
    if known.broken:
        raise PlanRefused(
            f"torch {torch.__version__} on this processor does not keep what equal bits rest on: "
            f"{'; '.join(known.broken)}. Install a torch from {_spelled(TRIED[0])} to {_spelled(TRIED[1])}"
        )


def untried_torch(version: str) -> str | None:
    """A warning for a torch that samestep was not tried with."""
    try:
        found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        found = (0, 0)
    if TRIED[0] <= found <= TRIED[1]:
        return None
    return (
        f"samestep was tried with torch {_spelled(TRIED[0])} to {_spelled(TRIED[1])}, this is {version}: "
        f"{len(PROMISES)} promises of its kernels were tried on this machine and hold; `samestep verify` tries the job"
    )


def _spelled(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _key() -> str:
    with Path("/proc/cpuinfo").open() as lines:  # those of the first core
        first = itertools.takewhile(str.strip, lines)
        processor = [line for line in first if line.partition(":")[0].strip() in OF_PROCESSOR]
    switches = [
        instruction_set("cpu"),
        torch.get_float32_matmul_precision(),
        str(torch.backends.mkldnn.enabled),
        str(torch.are_deterministic_algorithms_enabled()),
        json.dumps(kernel_variables(), sort_keys=True),
        *PROMISES,
    ]
    text = "\n".join([str(VERSION), str(torch.__version__), torch.__config__.show(), *processor, *switches])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
