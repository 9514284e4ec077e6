"""Small facts and wishes about processes, straight from the kernel."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, its parent, is gone, however it went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the wish was made
        os._exit(1)


def num_threads() -> int:
    """OS threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def leave(code: int) -> None:
    """End a forked process without running what its parent registered for its own end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
