"""The fingerprint of this machine's kernels, computed once and kept in the machine's cache.

It is kept under everything that it may depend on: processor, torch's build, the variables that libraries choose kernels
by, and the precision of products. A computation takes 0.1 s, a look into the cache less than a millisecond.
"""

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path

import torch

from samestep.launch.environment import cache_folder, kernel_variables
from samestep.numerics.kernel_fingerprint import VERSION, kernel_hashes
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


@functools.cache
def known_kernels(device: str) -> dict[str, str]:
    """The hash of each kind of operation; of a GPU its name."""
    if device != "cpu":
        return {"GPU": instruction_set(device)}
    path = cache_folder() / f"kernels-{_key()}.json"
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict) and all(isinstance(text, str) for text in found.values()) and found:
            return found
    hashes = kernel_hashes()
    with contextlib.suppress(OSError):  # it is computed again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(hashes))
        unfinished.replace(path)
    return hashes


def _key() -> str:
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    processor = [line for line in lines if line.partition(":")[0].strip() in OF_PROCESSOR]
    switches = [
        instruction_set("cpu"),
        torch.get_float32_matmul_precision(),
        str(torch.backends.mkldnn.enabled),
        str(torch.are_deterministic_algorithms_enabled()),
        json.dumps(kernel_variables(), sort_keys=True),
    ]
    text = "\n".join([str(VERSION), str(torch.__version__), torch.__config__.show(), *processor, *switches])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
