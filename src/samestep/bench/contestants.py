"""Who takes part in a comparison: plans of ours with what is predicted of them, and PyTorch's own ways."""

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
TWICE, MOST = 2.0, 6  # of the predicted plans, which are measured


@dataclass(frozen=True)
class Contestant:
    """plan_text: None for PyTorch without us. predicted_seconds: of a step; None where nobody predicts."""

    name: str
    plan_text: str | None = None
    predicted_seconds: float | None = None


def own_contestants(request: Request) -> list[Contestant]:
    """What the planner considers: its pick first, then the best of each kind, and each of a kind's next ones.

    A request that names a plan has that one alone. Raises Refused when there is none.
    """
    with Launcher() as launcher:
        if request.planning.plan != "auto":
            text = str(launcher.outline(request)["plan"])
            return [Contestant(f"{OURS} {request.planning.plan}", text)]
        found = launcher.candidates(request)
    return [Contestant(f"{OURS} {one['name']}", one["plan"], one["seconds"]) for one in sensible(found)]


def sensible(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Plans that are predicted to take up to TWICE as long as the best, at most MOST; and the best of every kind."""
    best = {one["kind"]: one for one in reversed(found)}
    near = [one for one in found if one["seconds"] <= TWICE * found[0]["seconds"]][:MOST]
    return [*near, *(one for one in best.values() if one not in near)]


def peers(workers: int, cores: int) -> list[Contestant]:
    """PyTorch's own ways, with one thread and with all in one process, and with as many workers as we have at most."""
    names = [f"plain {threads}" for threads in sorted({1, cores})]
    names += [f"{kind} {workers}" for kind in PEERS if kind != "plain" and workers > 1]
    return [Contestant(name) for name in names]


def chosen(contestants: Sequence[Contestant], only: Sequence[str]) -> list[Contestant]:
    """Those whose name is, or begins with, one of `only`; all when there is none. Raises PlanRefused."""
    for name in only:
        if not any(f"{one.name} ".startswith(f"{name} ") for one in contestants):
            raise PlanRefused(
                f"--only {name}: nobody has that name (known: {', '.join(one.name for one in contestants)})"
            )
    return [one for one in contestants if not only or any(f"{one.name} ".startswith(f"{name} ") for name in only)]


def pick_of(contestants: Sequence[Contestant]) -> Contestant | None:
    """The plan of ours that we would run: the planner's pick comes first."""
    return next((one for one in contestants if one.plan_text is not None), None)


def maker(contestant: Contestant, request: Request, *, warm_heap: bool) -> Callable[[], Contender]:
    """Starts a contestant's processes."""
    if contestant.plan_text is not None:
        # the plan has the numerics, and says who computes what
        told = request.but(plan=contestant.name, plan_text=contestant.plan_text, workers=None, assign=None, slices=None)
        part, env = ContenderSpec(OURS, 0, told), own_environment()
    else:
        kind, size = contestant.name.split()
        part = ContenderSpec(kind, int(size), request)
        env = bare_environment(int(size) if kind == "plain" else 1, warm_heap=warm_heap)
    return lambda: Contender(python("samestep.bench.contenders.contender_main"), env, part.message(os.getpid()))
