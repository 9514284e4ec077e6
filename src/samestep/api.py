"""`samestep.train` and `samestep.verify`, for Python."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samestep.commands.options import guard_missing, split_job
from samestep.errors import JobRefused, PlanRefused
from samestep.job.report import Report
from samestep.launch.environment import is_building, world
from samestep.launch.request.lock_file import read_lock
from samestep.launch.request.options import OPTIONS, JobSource
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher, RunDisplay
from samestep.launch.run.progress import OnlyStalls
from samestep.plan.plan import Plan

if TYPE_CHECKING:
    from samestep.verification.job.verdict import Verdict


def train(
    job: Callable[..., Any] | str,
    *,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    shards: int | None = None,
    slices: int | None = None,
    memory_limit: int | None = None,
    assign: Sequence[int] | None = None,
    hosts: Sequence[int] | None = None,
    threads: int | None = None,
    transport: str | None = None,
    device: str = "cpu",
    plan: Plan | str | None = None,
    profile: str | Path | None = None,
    numerics: str | None = None,
    codec: str | None = None,
    sync: str | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    save: str | Path | None = None,
    checkpoint: str | Path | None = None,
    every: int | None = None,
    resume: bool = False,
    change: Sequence[str] | str | None = None,
    rebalance: str | None = None,
    audit: int | None = None,
    allow_nan: bool = False,
    trace_steps: int | None = None,
    stall: float = 30.0,
    timeout: float = 300.0,
    launcher: Launcher | None = None,
    watcher: RunDisplay | None = None,
) -> Report:
    """Train a job on `workers` worker processes of this machine, or as one of those that a launcher has started.

    job: a function of a module or script that returns a `samestep.Job`, or "file.py:function".
    settings: the function's arguments, plain values.
    The other arguments are those of `samestep train --help`; `plan` may be a `Plan` or a file.
    stall: a run that is held up prints within so many seconds by what, on stderr, and waits on (docs/hangs.md).
    change: names of what is meant to differ from the checkpoint that training goes on from, for instance ["lr"].
    timeout: seconds that workers which a launcher has started wait for one another before the run fails.
    trace_steps: the report's `traces` hold the last so many steps, action by action.
    launcher: a fork server to use again for many runs; by default one is started and stopped.
    watcher: gets every event of the run; by default only what holds it up is shown.

    In a process that torchrun, srun, Ray Train or Kubernetes has started beside others, this call is
    one worker's part: all of them must make it. Each gets the report, worker 0 also the events and weights.

    Workers import the function by name, so a script must guard what it runs with
    `if __name__ == "__main__":`.

    Raises Refused when the job, plan or checkpoint cannot be run, TrainingFailed when training
    fails, Interrupted on Ctrl-C.
    """
    options = {name: value for name, value in locals().items() if name in OPTIONS and name != "plan"}
    request = _request(job, settings, plan, options | {"want_weights": memory_limit is None})
    if launcher is not None:
        return launcher.run(request, watcher or OnlyStalls())
    others = world()
    if device != "cpu" or (others is not None and others.size > 1):
        from samestep.launch.hosts.join_run import train_together  # imports torch

        return train_together(request, others, (watcher or OnlyStalls()).see)
    with Launcher() as own:
        return own.run(request, watcher or OnlyStalls())


def verify(
    job: Callable[..., Any] | str,
    *,
    settings: Mapping[str, Any] | None = None,
    plan: Plan | str | None = None,
    assign: Sequence[int] | None = None,
    launcher: Launcher | None = None,
    **options: Any,
) -> "Verdict":
    """Hold a plan against one worker, bit for bit, and one worker against a plain loop, up to rounding.

    job, settings, plan, assign, launcher: as for `train`. options: workers, shards, slices, threads, transport,
    profile, numerics, codec, sync, steps (default: 3), seed, allow_nan, as for `train`.

    The verdict's `is_same` says it all; its `findings` name the first value that differs, and why.

    Raises Refused when the job or plan cannot be run, TrainingFailed when a run fails, Interrupted on Ctrl-C.
    """
    known = ("workers", "shards", "slices", "threads", "transport", "profile", "numerics", "codec", "sync", "steps",
             "seed", "allow_nan")  # fmt: skip
    if strange := sorted(set(options) - set(known)):
        raise JobRefused(f"verify has no option {', '.join(strange)}: it takes plan, assign, {', '.join(known)}")
    request = _request(job, settings, plan, options | {"assign": assign})
    from samestep.launch.run.verify_run import verify_job  # imports torch

    if launcher is not None:
        return verify_job(request, launcher)
    with Launcher() as own:
        return verify_job(request, own)


def _request(
    job: Callable[..., Any] | str, settings: Mapping[str, Any] | None, plan: Plan | str | None, options: dict[str, Any]
) -> Request:
    """Raises Refused for what can be seen without running anything."""
    if is_building():
        raise guard_missing()
    source = _source(job)
    source = replace(source, locked=read_lock(source.file), settings=_settings(settings))
    paths = {
        n: str(Path(options[n]).absolute()) for n in ("profile", "save", "checkpoint") if options.get(n) is not None
    }
    hosts = options.get("hosts")
    if (change := options.get("change")) is not None:
        options["change"] = tuple(change.split(",") if isinstance(change, str) else change)
    counts = {"assign": _assign(options.get("assign")), "hosts": None if hosts is None else tuple(hosts)}
    return Request.made_here(source, plan, **options | paths | counts)


def _source(job: Callable[..., Any] | str) -> JobSource:
    """How workers find the job. Raises JobRefused for what they cannot import."""
    if isinstance(job, str):
        file, function = split_job(job)
        return JobSource(file=str(file), function=function)
    name = getattr(job, "__qualname__", type(job).__name__)
    if not inspect.isfunction(job) or "<" in name or "." in name:
        raise JobRefused(
            f"workers cannot import {name}: give a function at the top level of a module or script, "
            "its arguments as settings={...}"
        )
    if job.__module__ != "__main__":
        return JobSource(module=job.__module__, function=name)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m package.module
        return JobSource(module=spec.name, function=name)
    file_name = getattr(main, "__file__", None)
    if file_name is None:
        raise JobRefused(
            f"workers cannot import {name}, which was typed in: save it in a file and import it from there"
        )
    return JobSource(file=str(Path(file_name).absolute()), module="__main__", function=name)


def _settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(key, str) for key in settings)):
        raise JobRefused(f"settings={settings!r}: give the job function's arguments by name, {{'lr': 0.1}}")
    return dict(settings or {})


def _assign(assign: Sequence[int] | None) -> tuple[int, ...] | None:
    """Raises PlanRefused for what is no list of whole numbers."""
    if assign is None:
        return None
    if isinstance(assign, str) or not all(type(count) is int for count in assign):
        raise PlanRefused(f"assign={assign!r} is not a list of numbers: give shards per worker, for instance [5, 3]")
    return tuple(assign)
