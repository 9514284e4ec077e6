"""The command's side: start the fork server, ask it for runs, listen to their events.

Needs no torch, so it costs a command almost nothing.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, Self

from samestep.errors import JobRefused, SamestepError
from samestep.job.report import Report
from samestep.launch.environment import ROOT, server_environment
from samestep.launch.failure import Event
from samestep.launch.request.request import Mode, Request
from samestep.launch.run.outcome import Outcome
from samestep.state.checkpoint import remove_unfinished
from samestep.system import wire

SERVER = "import sys; sys.path.append(sys.argv[1]); from samestep.launch.run.fork_server import main; main()"


class RunDisplay(Protocol):
    """Display of a run for a person."""

    def see(self, event: Event, outcome: Outcome) -> None: ...


class Launcher:
    """A fork server and the runs it is asked for. Use it as a context; one server serves many runs."""

    def __init__(self) -> None:
        ours, theirs = wire.pair()
        self._end = ours
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVER, str(ROOT), str(theirs.fileno()), str(os.getpid())],
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

    def run(self, request: Request, watcher: RunDisplay | None = None) -> Report:
        """Run to the end and leave nothing behind. Raises Refused, TrainingFailed or Interrupted."""
        return self._listen(request, watcher).conclude()

    def outline(self, request: Request) -> dict[str, Any]:
        """Fields of the `PlanSummary` of the plan that would be run. Raises Refused."""
        found: dict[str, Any] = self._ask(request.but(mode=Mode.OUTLINE))
        return found

    def profile(self, request: Request) -> str | None:
        """Text of the job's profile on this host; None where no plan is searched. Raises Refused."""
        found: str | None = self._ask(request.but(mode=Mode.PROFILE))
        return found

    def candidates(self, request: Request) -> list[dict[str, Any]]:
        """Every plan that the planner considers, the best first: name, kind, plan, and a prediction's fields."""
        found: list[dict[str, Any]] = self._ask(request.but(mode=Mode.CANDIDATES))
        return found

    def tuned(self, request: Request) -> dict[str, Any]:
        """The fields of the `Tuned` numerics of a job on this host. Raises Refused."""
        found: dict[str, Any] = self._ask(request.but(mode=Mode.TUNE))
        return found

    def plain(self, request: Request) -> dict[str, Any]:
        """The fields of the `PlainFacts` of a job, whose plain steps are recorded in the request's `record` folder."""
        found: dict[str, Any] = self._ask(request.but(mode=Mode.PLAIN))
        return found

    def simulated(self, request: Request, counts: Sequence[int]) -> dict[str, Any]:
        """The fields of the `Scaling` of a job on the request's cluster. Raises Refused."""
        found: dict[str, Any] = self._ask(request.but(mode=Mode.SCALING, counts=tuple(counts)))
        return found

    def _ask(self, request: Request) -> Any:
        outcome = self._listen(request, None)
        if outcome.answer_file is None:
            outcome.conclude()
            raise AssertionError("a leader answers, or reports an error")
        with os.fdopen(outcome.answer_file, "rb") as file:
            file.seek(0)
            return json.load(file)

    def _listen(self, request: Request, watcher: RunDisplay | None) -> Outcome:
        outcome = Outcome()
        ours, theirs = wire.pair()
        with ours, theirs:
            try:
                wire.send(self._end, request.as_json(), theirs.fileno())
            except (TypeError, ValueError) as error:
                raise JobRefused(
                    f"the settings of {request.source.function} cannot travel to the workers: {error}; give "
                    "plain values (numbers, text, lists, dicts) or the name of a file"
                ) from None
            except OSError:
                raise SamestepError(
                    f"the fork server is gone (exit status {self._server.poll()}): start another Launcher"
                ) from None
            theirs.close()  # an end-of-file now means that every process of the run is gone
            with _signals_do(partial(_ask_to_stop, ours, request, outcome)):
                while True:
                    event, files = wire.receive(ours)
                    if event is None:
                        break
                    outcome.take(event, files)
                    if watcher is not None:
                        watcher.see(event, outcome)
        remove_unfinished(request.training.checkpoint, request.training.save, request.run)
        return outcome


def _ask_to_stop(run: socket.socket, request: Request, outcome: Outcome) -> None:
    """Kill the run; but when checkpoints are asked for, let it first write a last one."""
    gently = request.training.checkpoint is not None and not outcome.interrupted and bool(outcome.up)
    outcome.interrupted = True
    with contextlib.suppress(OSError):
        wire.send(run, {"command": "stop" if gently else "kill"})


@contextlib.contextmanager
def _signals_do(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and a closed terminal call `stop` instead of breaking in anywhere.

    Signals can be caught in the main thread only, and ignored ones (nohup) stay ignored.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda _signal, _frame: stop())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
