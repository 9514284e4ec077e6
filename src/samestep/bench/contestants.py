"""Who takes part in a comparison: plans of ours with what is predicted of them, and PyTorch's own ways."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from samestep.bench.part import OURS, PEERS, Part
from samestep.bench.seat import Contender, python
from samestep.errors import PlanRefused, Refused
from samestep.launch.environment import bare_environment, own_environment
from samestep.launch.launcher import Launcher
from samestep.launch.request import Request
from samestep.plan import Plan

AGAIN = " (again)"  # the reference's second copy


@dataclass(frozen=True)
class Contestant:
    """plan_text: None for PyTorch without us. predicted_seconds: of a step; None where nobody predicts."""

    name: str
    plan_text: str | None = None
    predicted_seconds: float | None = None


def own_contestants(request: Request) -> list[Contestant]:
    """Data parallelism on 1, 2, ... workers and a pipeline; with `--slices K` also slices and hybrid.

    The first is the plan that `samestep train` runs when nothing is said. Raises Refused when that one cannot be run.
    """
    most = request.workers or request.default_workers
    with Launcher() as launcher:
        first = Contestant(f"{OURS} data", outlined(launcher, request))
        workers = _workers_in(first)
        found = [replace(first, name=f"{OURS} data {workers}")]
        asked = [("data", count) for count in range(1, workers)]
        asked += [("pipeline", most)] if most > 1 else []
        asked += [(plan, most) for plan in ("slices", "hybrid") if request.slices is not None]
        for plan, count in asked:
            try:
                text = outlined(launcher, replace(request, plan=plan, workers=count))
            except Refused:
                continue  # a preset that this model has no use for
            if text not in [one.plan_text for one in found]:
                found.append(Contestant(f"{OURS} {plan} {count}", text))
    return found


def outlined(launcher: Launcher, request: Request) -> str:
    """The text of the plan that a request makes. Raises Refused."""
    slices = request.slices if request.plan in ("slices", "hybrid") else None
    return str(launcher.outline(replace(request, slices=slices))["plan"])


def _workers_in(contestant: Contestant) -> int:
    assert contestant.plan_text is not None
    return Plan.parse(contestant.plan_text).workers


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
    """The plan of ours that we would run: the one with the least prediction, the first where nothing is predicted."""
    ours = [one for one in contestants if one.plan_text is not None]
    return min(ours, key=lambda one: one.predicted_seconds or float("inf"), default=None)


def maker(contestant: Contestant, request: Request, *, warm_heap: bool) -> Callable[[], Contender]:
    """Starts a contestant's processes."""
    if contestant.plan_text is not None:
        # the plan has the numerics, and says who computes what
        told = replace(
            request, plan=contestant.name, plan_text=contestant.plan_text, workers=None, assign=None, slices=None
        )
        part, env = Part(OURS, 0, told), own_environment()
    else:
        kind, size = contestant.name.split()
        part = Part(kind, int(size), request)
        env = bare_environment(int(size) if kind == "plain" else 1, warm_heap=warm_heap)
    return lambda: Contender(python("samestep.bench.contender"), env, part.message(os.getpid()))
