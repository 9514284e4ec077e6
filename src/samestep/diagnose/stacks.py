"""Stacks of threads: from the text that `faulthandler` writes to the line of code that holds a thread."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
THREAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):")


@dataclass(frozen=True)
class Frame:
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{PurePath(self.file).name}:{self.line} {self.function}"


def threads_of(text: str) -> list[list[Frame]]:
    """The frames of every thread, innermost first; the thread that got the signal comes first."""
    found: list[list[Frame]] = []
    current = 0
    for line in text.splitlines():
        if (begins := THREAD.match(line)) is not None:
            if begins[1] == "Current thread":
                current = len(found)
            found.append([])
        elif found and (frame := FRAME.match(line)) is not None:
            found[-1].append(Frame(frame[1], int(frame[2]), frame[3]))
    return found[current : current + 1] + found[:current] + found[current + 1 :]


def is_below(frame: Frame, folders: Sequence[str]) -> bool:
    return frame.file.startswith("<") or any(frame.file.startswith(f"{folder}/") for folder in folders)


def place_in(frames: Sequence[Frame], libraries: Sequence[str]) -> Frame | None:
    """The innermost frame of code that is not below one of the folders in `libraries`."""
    return next((frame for frame in frames if not is_below(frame, libraries)), None)


def waits_for_loader(frames: Sequence[Frame], libraries: Sequence[str], ours: str) -> bool:
    """Whether a thread waits in torch's DataLoader, and not in a data set that the loader calls itself."""
    for frame in frames:
        if frame.file.endswith("utils/data/dataloader.py"):
            return True
        if not is_below(frame, (*libraries, ours)):
            return False
    return False


def waits_for_lock(frames: Sequence[Frame]) -> bool:
    """Whether the innermost frame is one of Python's own locks."""
    names = ("acquire", "wait", "__enter__", "join", "_wait_for_tstate_lock")
    return bool(frames) and PurePath(frames[0].file).name == "threading.py" and frames[0].function in names
