"""Facts of a process from the kernel: seen from outside, whatever the process does or does not do."""

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
GONE = "gone"
PROC = Path("/proc")


@dataclass(frozen=True)
class Vital:
    """state: the kernel's letter (R runs, S sleeps, D waits for a device, T stopped, Z ended), or GONE.

    seconds: of processor time, all threads. asleep_in: the kernel's function in which the main thread sleeps.
    """

    state: str
    seconds: float = 0.0
    asleep_in: str = ""
    born: int = 0  # ticks since boot: a process id may be given out again


def vital(pid: int) -> Vital:
    text = _text(PROC / str(pid) / "stat")
    if not text:
        return Vital(GONE)
    fields = text.rpartition(")")[2].split()
    asleep_in = _text(PROC / str(pid) / "wchan").strip()
    seconds = (int(fields[11]) + int(fields[12])) / TICKS
    return Vital(fields[0], seconds, "" if asleep_in == "0" else asleep_in, int(fields[19]))


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`, by age."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (text := _text(entry / "stat")):
            fields = text.rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append((int(fields[19]), int(entry.name)))
    return [child for _, child in sorted(found)]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; without one it would end."""
    for line in _text(PROC / str(pid) / "status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # the process has just ended, or the kernel does not tell
        return ""
