"""Storages of given sizes: with memory, or with an address only."""

import mmap

import torch

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; Python names it from 3.13 on
SMALL = 1 << 16  # bytes up to which a tensor has memory, and is computed when its values are known


def memory_of(nbytes: int) -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8).untyped_storage()


def reserve(nbytes: int) -> torch.UntypedStorage:
    """Reserve address space. The system gives memory only to pages that somebody touches."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, nbytes, flags=flags), dtype=torch.uint8, count=nbytes).untyped_storage()
