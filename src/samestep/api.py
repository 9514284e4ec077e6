"""`samestep.train`, for Python."""

import inspect
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samestep.cli import split_job
from samestep.errors import JobRefused
from samestep.launch.environment import mkl_mode, physical_cores
from samestep.launch.importing import SCRIPT
from samestep.launch.launcher import Launcher, Watcher
from samestep.launch.request import Request
from samestep.plan import Plan
from samestep.report import Report


def train(
    job: Callable[..., Any] | str,
    *,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    shards: int | None = None,
    assign: Sequence[int] | None = None,
    threads: int | None = None,
    transport: str | None = None,
    plan: Plan | str = "data",
    numerics: str | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    save: str | Path | None = None,
    checkpoint: str | Path | None = None,
    every: int | None = None,
    resume: bool = False,
    allow_nan: bool = False,
    launcher: Launcher | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Train a job on `workers` worker processes of this machine.

    job: a function of a module or script that returns a `samestep.Job`, or "file.py:function".
    settings: the function's arguments, plain values.
    The other arguments are those of `samestep train --help`; `plan` may be a `Plan` or a file.
    launcher: a fork server to use again for many runs; by default one is started and stopped.
    watcher: gets every event of the run; by default nothing is shown.

    Workers import the function by name, so a script must guard what it runs with
    `if __name__ == "__main__":`.

    Raises Refused when the job, plan or checkpoint cannot be run, TrainingFailed when training
    fails, Interrupted on Ctrl-C.
    """
    name, plan_text = ("plan", str(plan)) if isinstance(plan, Plan) else (plan, None)
    if plan_text is None and name != "data":
        plan_text = Path(name).read_text()
    request = Request(
        run=uuid.uuid4().hex[:12],
        **_where(job),
        settings=dict(settings or {}),
        workers=workers,
        default_workers=physical_cores(),
        shards=shards,
        assign=None if assign is None else tuple(assign),
        threads=threads,
        transport=transport,
        plan=name,
        plan_text=plan_text,
        numerics=numerics,
        steps=steps,
        epochs=epochs,
        seed=seed,
        save=None if save is None else str(Path(save).absolute()),
        checkpoint=None if checkpoint is None else str(Path(checkpoint).absolute()),
        every=every,
        resume=resume,
        allow_nan=allow_nan,
        want_weights=True,
        folder=str(Path.cwd()),
        path=tuple(sys.path),
        mkl=mkl_mode(),
    )
    if launcher is not None:
        return launcher.run(request, watcher)
    with Launcher() as own:
        return own.run(request, watcher)


def _where(job: Callable[..., Any] | str) -> dict[str, Any]:
    """How workers find the job. Raises JobRefused for what they cannot import."""
    if isinstance(job, str):
        file, function = split_job(job)
        return {"file": str(file), "function": function}
    name = getattr(job, "__qualname__", type(job).__name__)
    if not inspect.isfunction(job) or "<" in name or "." in name:
        raise JobRefused(
            f"workers cannot import {name}: give a function at the top level of a module or script, "
            "its arguments as settings={...}"
        )
    main = sys.modules["__main__"]
    if job.__module__ == SCRIPT or (job.__module__ == "__main__" and main.__name__ != "__main__"):
        raise guard_missing(job.__module__)
    if job.__module__ != "__main__":
        return {"module": job.__module__, "function": name}
    file_name = getattr(main, "__file__", None)
    if file_name is None:
        raise JobRefused(
            f"workers cannot import {name}, which was typed in: save it in a file and import it from there"
        )
    return {"file": str(Path(file_name).absolute()), "module": "__main__", "function": name}


def guard_missing(module: str) -> JobRefused:
    return JobRefused(
        f'this script ({module}) trains while workers import it: put what it runs under\n    if __name__ == "__main__":'
    )
