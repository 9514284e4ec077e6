"""Positions of open files. A fork shares them between parent and child: what one reads, the other has skipped.

A data set that opens a file once, or an archive, and reads from it in several processes gets bytes of one row for
another. Opened again under the same number, a file has a position of the process's own, whoever uses that number:
Python's files, archives, or a library.
"""

import fcntl
import os
import stat
from pathlib import Path

from samestep.errors import JobRefused

STANDARD = (0, 1, 2)  # input, output, errors: shared on purpose
KEPT = os.O_NONBLOCK | getattr(os, "O_DIRECT", 0) | getattr(os, "O_NOATIME", 0)


def take_own_positions() -> None:
    """Call first in a forked process. Files opened for writing alone, and memory without a name, stay shared.

    Raises JobRefused for a file that may not be opened again.
    """
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number not in STANDARD:
            _open_again(number)


def _open_again(number: int) -> None:
    path = f"/proc/self/fd/{number}"
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            return
        flags, target = fcntl.fcntl(number, fcntl.F_GETFL), str(Path(path).readlink())
    except OSError:  # that of the listing itself
        return
    if flags & os.O_ACCMODE == os.O_WRONLY or flags & (os.O_APPEND | os.O_PATH) or target.startswith("/memfd:"):
        return
    try:
        again = os.open(path, flags & os.O_ACCMODE | flags & KEPT | os.O_CLOEXEC)
    except OSError as error:
        raise JobRefused(
            f"{target} was opened before the workers were forked, which share its position, and cannot be opened "
            f"again ({error.strerror}): open it in __getitem__, or when the first row is asked for"
        ) from None
    os.lseek(again, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
    os.dup2(again, number, inheritable=os.get_inheritable(number))
    os.close(again)
