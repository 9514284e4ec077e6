"""Memory of loader workers that has no name.

torch shares a tensor through a file in /dev/shm that it makes, opens and removes. A process that is
killed in between leaves the file behind. An anonymous file (memfd_create) never has a name; the rest of
torch's way, including the descriptor that is passed on, stays as it is.
"""

import os
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_storage


def share_without_names() -> None:
    """Let this whole process share tensors so; it should have no other purpose than to load."""
    torch.UntypedStorage._new_shared = classmethod(_new_shared)  # type: ignore[method-assign,assignment]
    ForkingPickler.register(torch.UntypedStorage, _reduce)


def _new_shared(storage_class: Any, size: int, *, device: Any = "cpu") -> torch.UntypedStorage:
    """Memory of `size` bytes, into which torch's default collate function writes a batch."""
    assert torch.device(device).type == "cpu", "loader workers make tensors on the CPU"
    descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return storage_class._new_shared_fd_cpu(descriptor, size)  # type: ignore[no-any-return]
    finally:
        os.close(descriptor)  # torch has a duplicate


def _reduce(storage: torch.UntypedStorage) -> Any:
    """Pickled form of a storage, from which another process maps it."""
    if storage.device.type == "cpu" and storage.nbytes() and not storage.is_shared():
        shared = _new_shared(torch.UntypedStorage, storage.nbytes())
        shared.copy_(storage)
        storage = shared
    return reduce_storage(storage)  # type: ignore[no-untyped-call]
