"""The device of a worker: the CPU, or a GPU.

    cpu     workers of a host share one memory
    cuda    every worker has its GPU's memory to itself, even where several share the GPU: workers of
            one machine exchange as workers of several hosts do

Samples, records and random streams of Python and NumPy stay in the host's memory.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samestep.errors import PlanRefused
from samestep.system.nests import mapped, tensors_of


def check_device(kind: str) -> None:
    """Check that this machine has the device. Raises PlanRefused."""
    if kind == "cuda" and torch.version.cuda is None:
        raise PlanRefused(
            f"--device cuda: torch {torch.__version__} is built without CUDA; install a build with it, or leave "
            "--device out"
        )
    if kind == "cuda" and torch.cuda.device_count() == 0:
        raise PlanRefused(
            f"--device cuda: torch {torch.__version__} sees no GPU on this host; see nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or leave --device out"
        )


def uses_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def num_devices(kind: str) -> int:
    """Number of GPUs of this host; 0 where the CPU computes."""
    return torch.cuda.device_count() if kind == "cuda" else 0


def instruction_set(kind: str) -> str:
    """The instruction set, on which a kernel's bits depend besides torch's version, as one word."""
    if kind == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    found = torch.cuda.get_device_properties(0)
    return f"{found.name.replace(' ', '_')}/sm_{found.major}{found.minor}/cuda{torch.version.cuda}"


def take_device(kind: str, number: int) -> torch.device:
    """The device of worker `number` of this host. On a GPU, kernels from here on repeat their bits.

    Backward then runs in the thread that called it, as on the CPU, so that shards in lockstep can stop there.
    """
    if kind == "cpu":
        return torch.device("cpu")
    index = number % torch.cuda.device_count()
    torch.cuda.set_device(index)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.autograd.set_multithreading_enabled(mode=False)
    return torch.device("cuda", index)


def same_device() -> Callable[[], None]:
    """A function that gives another thread this thread's GPU: call it there. torch's current GPU is one per thread."""
    if not uses_gpu():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def to_device(values: Any, device: torch.device) -> Any:
    """A nest of any types with its tensors on `device`; what is already there is not copied."""
    if isinstance(values, Tensor):
        if values.device == device:
            return values
        if device.type == "cuda" and not values.is_pinned():
            values = values.pin_memory()  # a copy from there runs beside Python
        return values.to(device, non_blocking=True)
    if type(values) is dict:
        return {name: to_device(value, device) for name, value in values.items()}
    if type(values) in (tuple, list):
        return type(values)([to_device(value, device) for value in values])
    if all(tensor.device == device for _, tensor in tensors_of(values)):
        return values
    return mapped(values, lambda leaf: to_device(leaf, device) if isinstance(leaf, Tensor) else leaf)


def move_rest(model: nn.Module, device: torch.device) -> None:
    """Move buffers, and parameters that are not there yet, to `device`; a tensor with several names stays one."""
    for param in model.parameters():
        if param.device != device:
            param.data = param.data.to(device)
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = moved.setdefault(id(buffer), buffer.to(device))


def precision_of(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which forward runs: autocast for bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if name == "bfloat16" else nullcontext()
