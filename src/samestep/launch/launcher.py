"""The command's side: start the fork server, ask it for runs, listen to what they tell.

Needs no torch, so it costs a command almost nothing.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self

from samestep.checkpoint import remove_unfinished
from samestep.errors import SamestepError
from samestep.launch import wire
from samestep.launch.environment import server_environment
from samestep.launch.outcome import Event, Outcome
from samestep.launch.request import Request
from samestep.report import Report


class Watcher(Protocol):
    """Whoever shows a run to a person."""

    def see(self, event: Event, outcome: Outcome) -> None: ...


class Silent:
    """Shows nothing."""

    def see(self, event: Event, outcome: Outcome) -> None:
        pass


class Launcher:
    """A fork server and the runs it is asked for. Use it as a context; one server serves many runs."""

    def __init__(self) -> None:
        ours, theirs = wire.pair()
        self._end = ours
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "samestep.launch.server", str(theirs.fileno()), str(os.getpid())],
                env=server_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the command to pass on
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._end.close()
        self._server.wait()

    def run(self, request: Request, watcher: Watcher | None = None) -> Report:
        """Run to the end. Raises Refused, TrainingFailed or Interrupted; nothing is left behind."""
        watcher = watcher or Silent()
        outcome = Outcome()
        ours, theirs = wire.pair()
        with ours, theirs:
            try:
                wire.send(self._end, asdict(request), theirs.fileno())
            except OSError:
                raise SamestepError(f"the fork server is gone (exit status {self._server.poll()})") from None
            theirs.close()  # an end-of-file now means that every process of the run is gone
            with _signals_as_interrupt():
                self._listen(ours, request, outcome, watcher)
        if request.checkpoint is not None:
            remove_unfinished(Path(request.checkpoint), request.run)
        return outcome.conclude()

    def _listen(self, ours: socket.socket, request: Request, outcome: Outcome, watcher: Watcher) -> None:
        while True:
            try:
                event, files = wire.receive(ours)
                if event is None:
                    return
                outcome.take(event, files)
                watcher.see(event, outcome)
            except KeyboardInterrupt:
                gently = request.checkpoint is not None and not outcome.interrupted and bool(outcome.up)
                outcome.interrupted = True
                with contextlib.suppress(OSError):
                    wire.send(ours, {"command": "stop" if gently else "kill"})


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does, where signals can be caught (the main thread)."""

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
