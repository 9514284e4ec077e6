"""How a command ends: what was found as one line of JSON; what went wrong once, and the exit code says what it was."""

import contextlib
import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from samestep.errors import Interrupted, Refused, SamestepError
from samestep.launch.outcome import WorkerError


def print_json(found: Mapping[str, Any]) -> None:
    """The last line of stdout. JSON has no NaN and no infinity: null stands for them."""
    print(json.dumps(_finite(found), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_error(error: SamestepError) -> None:
    """One line first, then one traceback, if there is any; once."""
    if error.is_shown:
        return
    if not error.is_told:
        print(f"samestep: {error}" if isinstance(error, Refused) else str(error), file=sys.stderr)
    if isinstance(error, WorkerError) and error.traceback:
        print("\n" + error.traceback.rstrip(), file=sys.stderr)
    sys.stderr.flush()
    error.is_shown = True


@contextlib.contextmanager
def stopping(what: str) -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal break in as Ctrl-C does; all of them raise Interrupted with these words.

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
    """What went wrong is shown; the exit code of the error."""
    try:
        yield
    except SamestepError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped before training", file=sys.stderr)
        sys.exit(Interrupted.exit_code)
