"""The contestants of a comparison: plans of ours with their predicted times, and PyTorch's own ways."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samestep.bench.contenders.contender_process import Contender, python
from samestep.bench.contenders.contender_spec import OURS, PEERS, ContenderSpec
from samestep.errors import PlanRefused
from samestep.launch.environment import bare_environment, own_environment
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher

AGAIN = " (again)"  # the reference's second copy
TWICE, MOST = 2.0, 6  # bounds on the predicted plans that are measured: time over the best one's, number


@dataclass(frozen=True)
class Contestant:
    """An entry of a comparison. plan_text: None for PyTorch's own ways. predicted_seconds: per step, if predicted."""

    name: str
    plan_text: str | None = None
    predicted_seconds: float | None = None


def own_contestants(request: Request) -> list[Contestant]:
    """Plans that the planner considers: its pick first, then those that `sensible` keeps.

    A request that names a plan has only that one. Raises Refused when there is none.
    """
    with Launcher() as launcher:
        if request.planning.plan != "auto":
            text = str(launcher.outline(request)["plan"])
            return [Contestant(f"{OURS} {request.planning.plan}", text)]
        found = launcher.candidates(request)
    return [Contestant(f"{OURS} {one['name']}", one["plan"], one["seconds"]) for one in sensible(found)]


def sensible(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Plans predicted to take at most TWICE the best one's time, at most MOST; and the best of every kind."""
    best = {one["kind"]: one for one in reversed(found)}
    close = [one for one in found if one["seconds"] <= TWICE * found[0]["seconds"]][:MOST]
    return [*close, *(one for one in best.values() if one not in close)]


def peers(workers: int, cores: int) -> list[Contestant]:
    """PyTorch's own ways: one process with one and with all threads, and `workers` processes."""
    names = [f"plain {threads}" for threads in sorted({1, cores})]
    names += [f"{kind} {workers}" for kind in PEERS if kind != "plain" and workers > 1]
    return [Contestant(name) for name in names]


def chosen(contestants: Sequence[Contestant], only: Sequence[str]) -> list[Contestant]:
    """Those whose name is, or begins with, one of `only`; all when there is none. Raises PlanRefused."""
    for name in only:
        if not any(f"{one.name} ".startswith(f"{name} ") for one in contestants):
            raise PlanRefused(
                f"--only {name}: no contestant has that name (known: {', '.join(one.name for one in contestants)})"
            )
    return [one for one in contestants if not only or any(f"{one.name} ".startswith(f"{name} ") for name in only)]


def pick_of(contestants: Sequence[Contestant]) -> Contestant | None:
    """The plan of ours that would run, which is the first; None when none is ours."""
    return next((one for one in contestants if one.plan_text is not None), None)


def maker(contestant: Contestant, request: Request, *, warm_heap: bool) -> Callable[[], Contender]:
    """A function that starts a contestant's processes."""
    if contestant.plan_text is not None:
        # the plan has the numerics, and assigns the work
        planned = request.but(
            plan=contestant.name, plan_text=contestant.plan_text, workers=None, assign=None, slices=None
        )
        spec, env = ContenderSpec(OURS, 0, planned), own_environment()
    else:
        kind, size = contestant.name.split()
        spec = ContenderSpec(kind, int(size), request)
        env = bare_environment(int(size) if kind == "plain" else 1, warm_heap=warm_heap)
    return lambda: Contender(python("samestep.bench.contenders.contender_main"), env, spec.message(os.getpid()))
