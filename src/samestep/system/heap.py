"""The C library's heap, which keeps freed memory and the holes between what is still in use."""

import contextlib
import ctypes
import gc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 20  # bytes
LARGEST = (1 << 31) - 1


def before_fork() -> None:
    """Free garbage, and exempt the remaining objects from collection.

    A collection writes to every object that it visits: a child would get a copy of each page for itself.
    """
    gc.collect()
    gc.freeze()
    give_back()


def give_back() -> None:
    """Return freed memory to the kernel: what a process once needed would else count as its own for ever.

    Nothing happens where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_compact() -> None:
    """Map tensors of a megabyte and more one by one from here on, so that the kernel has them back once freed.

    Call it before forking, in processes whose memory is limited. Fresh pages cost time: up to 15 % of a step
    (benchmarks/memory_parts).
    """
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, LARGE)


def keep_warm() -> None:
    """Keep freed memory from here on instead of returning it every step, in a process that was not started so."""
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, LARGEST)
