"""Small facts and wishes about processes, straight from the kernel."""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from samestep.system.file_positions import take_own_positions

PR_SET_PDEATHSIG = 1


def fork(work: Callable[[], int]) -> int:
    """Fork a child that dies with this process and ends with the exit status that `work` returns. Returns its id."""
    parent = os.getpid()
    flush_output()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_with_parent(parent)
            take_own_positions()
            code = work()
        except BaseException:  # noqa: BLE001 - a child must not run on into its parent's code
            traceback.print_exc()
        leave(code)
    return pid


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, its parent, is gone, however it went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the wish was made
        os._exit(1)


@contextlib.contextmanager
def die_on_word_from(end: socket.socket) -> Iterator[None]:
    """Inside, the kernel ends this process as soon as `end` has something to read, or is closed.

    It does so in the midst of whatever runs, an endless loop or a download of the user's code too.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    flags = fcntl.fcntl(end, fcntl.F_GETFL)
    fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(end, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([end], [], [], 0)[0]:  # it came before the wish was made
        os._exit(1)
    try:
        yield
    finally:
        fcntl.fcntl(end, fcntl.F_SETFL, flags)


def num_threads() -> int:
    """OS threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def leave(code: int) -> None:
    """End a forked process without running what its parent registered for its own end."""
    flush_output()
    os._exit(code)


def flush_output() -> None:
    """Before a fork: else what the user's code printed would come once from every process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone, or it is closed
            stream.flush()
