"""Errors as events that travel between the processes of a run, and back."""

import re
import traceback
from typing import Any

from samestep.errors import PeerLost, Refused, SamestepError, TrainingFailed

Event = dict[str, Any]

LONGEST_TEXT = 12 * 1024  # characters of a message or traceback that travel; two fit a packet, six bytes each


def failure_event(error: BaseException, rank: int | None, step: int | None) -> Event:
    """The event that reports an error. Errors of our own family carry a message only, others also their traceback."""
    ours = isinstance(error, SamestepError)
    text = "" if ours else "".join(traceback.format_exception(error))
    return {
        "event": "failed",
        "rank": rank,
        "step": step,
        "type": type(error).__name__,
        "message": _message(error)[:LONGEST_TEXT],
        "traceback": text[-LONGEST_TEXT:],
        "exit": error.exit_code if isinstance(error, SamestepError) else 1,
        "secondary": isinstance(error, PeerLost),
        "peer": error.peer if isinstance(error, PeerLost) else None,
    }


def _message(error: BaseException) -> str:
    """The error's message; its last line where torch's DataLoader has wrapped a loader worker's traceback into it."""
    text = str(error)
    if not text.startswith("Caught ") or "\nOriginal Traceback" not in text:
        return text
    last = text.rstrip().rpartition("\n")[2]
    return re.sub(rf"^(\w+\.)*{type(error).__name__}: ", "", last)


class WorkerError(TrainingFailed):
    """An error in a worker, with its traceback there."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


def error_from(failure: Event) -> SamestepError:
    """The exception for a failure's event: one line with worker, step and error."""
    if failure["exit"] == Refused.exit_code:
        return Refused(failure["message"])
    what = f"{failure['type']}: {failure['message']}" if failure["message"] else failure["type"]
    if failure["rank"] is None:
        return WorkerError(f"the job failed before training: {what}", failure["traceback"])
    name = failure.get("name", f"worker {failure['rank']}")
    return WorkerError(f"{name} failed at step {failure['step']}: {what}", failure["traceback"])
