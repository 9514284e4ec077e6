"""A contender's process, seen from the orchestrator: it starts, answers when asked for steps, and ends.

It leaves no name behind: its pipes are opened under /proc, and its output goes to a file without a name. Free of torch.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from samestep.launch.environment import ROOT

START_LIMIT = 300.0  # seconds for a contender to become ready
ANSWER_LIMIT = 60.0  # seconds for an answer, beside the expected length of the steps
END_LIMIT = 10.0  # seconds for a contender to end


class DoesNotApply(Exception):
    """The contender cannot compute this job, with the reason."""


class Failed(Exception):
    """The contender ended or hung, with the reason as far as it is known."""


class Contender:
    """A running contender. command: gets the paths of its pipes as last two arguments, and `message` on stdin."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], message: str = "") -> None:
        ask, self._ask = os.pipe()
        self._answer, answer = os.pipe()
        self._theirs = [ask, answer]
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        self._message = message
        self._rest = b""
        place = f"/proc/{os.getpid()}/fd"
        self.process = subprocess.Popen(
            [*command, f"{place}/{ask}", f"{place}/{answer}"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=self._printed,
            start_new_session=True,  # the orchestrator passes on a Ctrl-C in the terminal
        )
        self._pidfd = os.pidfd_open(self.process.pid)

    def wait_until_ready(self) -> dict[str, Any]:
        """The first message, when it is ready. Raises DoesNotApply or Failed."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading its answer finds the reason
            self.process.stdin.write(self._message.encode())
            self.process.stdin.close()
        found = self._answer_of(START_LIMIT)
        for end in self._theirs:
            os.close(end)
        self._theirs = []
        return found

    def turn(self, steps: int, warm: int = 0, patience: float = ANSWER_LIMIT) -> tuple[list[float], float]:
        """Seconds of each of `steps` steps after `warm` others, and the loss of the last. Raises Failed."""
        with contextlib.suppress(BrokenPipeError):  # reading its answer finds the reason
            os.write(self._ask, json.dumps({"steps": steps + warm}).encode() + b"\n")
        found = self._answer_of(patience)
        return found["seconds"][warm:], found["loss"]

    def _answer_of(self, patience: float) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._line(time.monotonic() + patience, patience))
        if "refused" in found:
            raise DoesNotApply(found["refused"])
        if "failed" in found:
            raise Failed(found["failed"])
        return found

    def _line(self, deadline: float, patience: float) -> bytes:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answer, self._pidfd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Failed(f"no answer within {patience:.0f} s{self._last_words()}")
            if self._answer not in ready or not (part := os.read(self._answer, 1 << 16)):
                raise Failed(f"it ended with exit status {self.process.wait()}{self._last_words()}")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ", without a word"

    def end(self) -> None:
        """Ask it to end with all its processes."""
        self.process.terminate()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self.end()
        try:
            self.process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in [self._ask, self._answer, self._pidfd, *self._theirs]:
            os.close(end)
        self._theirs = []
        self._printed.close()


def python(module: str) -> list[str]:
    """The command of a contender whose `main` is in a module of this package, wherever that was imported from."""
    code = f"import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; main(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", code, str(ROOT)]
