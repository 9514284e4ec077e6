"""The end of a command: its result as one line of JSON, or one error and its exit code."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from samestep.errors import Interrupted, Refused, SamestepError
from samestep.launch.failure import WorkerError
from samestep.system.json_values import line_of


def print_json(found: Mapping[str, Any]) -> None:
    """Print one object as the last line of stdout."""
    print(line_of(found), flush=True)


def show_error(error: SamestepError) -> None:
    """Show an error once: one line, then its traceback if it has one."""
    if error.is_shown:
        return
    if not error.is_repeated:
        print(f"samestep: {error}" if isinstance(error, Refused) else str(error), file=sys.stderr)
    if isinstance(error, WorkerError) and error.traceback:
        print("\n" + error.traceback.rstrip(), file=sys.stderr)
    sys.stderr.flush()
    error.is_shown = True


@contextlib.contextmanager
def stopping(what: str) -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal interrupt as Ctrl-C does; all raise Interrupted with the text `what`.

    For commands that hold processes of their own. Ignored signals (nohup) stay ignored.
    """
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(what) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Show an error that is raised inside, and exit with its code."""
    try:
        yield
    except SamestepError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped before training", file=sys.stderr)
        sys.exit(Interrupted.exit_code)
