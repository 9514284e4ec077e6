"""`samestep plan --tune-numerics [--lock]`."""

import sys

from samestep.errors import PlanRefused
from samestep.launch.request.lock_file import lock_file, lock_text
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher


def tune_numerics(request: Request, *, lock: bool) -> None:
    """Print the fastest numerics for this machine and the cost of others; write the lock file if asked to."""
    refuse_given(request)
    with Launcher() as launcher:
        found = launcher.tuned(request)
    reasons = f"{found['table']}\nslices: {found['slices']}"
    print(reasons)
    print(f"\nchosen: {found['line']}")
    print(f"with them: {found['plan']}, predicted {found['seconds'] * 1e3:.3g} ms per step")
    if not lock:
        print(f'use them: --numerics "{found["line"]}", or keep them: --lock')
        return
    if request.source.file is None:
        raise PlanRefused("--lock writes a file beside the job's file, and this job is in a module: give its file")
    file = lock_file(request.source.file)
    file.write_text(lock_text(found["line"], reasons))
    print(f"written to {file.name}", file=sys.stderr)


def refuse_given(request: Request) -> None:
    """Raises PlanRefused for given numerics that are to be chosen."""
    given = [f"--{name}" for name in ("shards", "threads", "numerics") if getattr(request.numerics, name) is not None]
    if given:
        raise PlanRefused(f"--tune-numerics chooses shards, threads and slices: leave {', '.join(given)} out")
