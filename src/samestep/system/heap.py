"""The C library's heap keeps what it freed, and holes between what is left."""

import contextlib
import ctypes
import gc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 20  # bytes
LARGEST = (1 << 31) - 1


def before_fork() -> None:
    """Free what nobody needs, and leave alone what is there.

    A collection writes to every object that it looks at: a child would get a copy of each page for itself.
    """
    gc.collect()
    gc.freeze()
    give_back()


def give_back() -> None:
    """Return freed memory to the kernel: what a process needed once would count as its own for ever.

    Nothing happens where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_compact() -> None:
    """From here on, tensors of a megabyte and more are mapped one by one, and are the kernel's again once freed.

    For processes whose memory is limited, and before they fork. Fresh pages cost time: up to 15 % of a step
    (benchmarks/memory_parts).
    """
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, LARGE)


def keep_warm() -> None:
    """From here on, keep freed memory instead of returning it every step: for a process that was not started so."""
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, LARGEST)
