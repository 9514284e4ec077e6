"""`samestep bench`."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from samestep.commands.exit_codes import exit_codes, print_json, stopping
from samestep.commands.options import JOB, make_request, options
from samestep.errors import PlanRefused
from samestep.launch.environment import physical_cores
from samestep.launch.request.request import Request


@click.command()
@JOB
@options("plan", "profile", "workers", "shards", "threads", "slices", "numerics", "codec", "steps", "seed", "settings")
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="Default: as many as the time allows.")
@click.option("--steps-per-round", type=click.IntRange(1), metavar="N", help="Default: as the time allows.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=60.0, help="In all. Default: 60.")
@click.option("--only", metavar="NAME,...", default="", help="Contestants by name, for instance samestep,'plain 1'.")
@click.option("--warm-heap", is_flag=True, help="Give PyTorch's own ways our settings of the heap.")
@click.option(
    "--sync",
    is_flag=False,
    flag_value="",
    metavar="['POLICY ...']",
    help="Instead: train under several sync policies, and compare the time to a loss.",
)
@click.option("--target-loss", type=float, help="With --sync. Default: what exact steps come to.")
@click.option("--window", type=click.IntRange(1), metavar="N", help="With --sync: steps whose mean is a loss.")
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the comparison as a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as the last line of stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def bench(
    job: str,
    settings: tuple[str, ...],
    rounds: int | None,
    steps_per_round: int | None,
    seconds: float,
    only: str,
    warm_heap: bool,
    sync: str | None,
    target_loss: float | None,
    window: int | None,
    svg: str | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Measure our plans and PyTorch's own ways on this machine, in turns, on the job that FUNCTION in FILE returns."""
    with exit_codes():
        from samestep.bench.comparison_picture import comparison_picture  # imports numpy
        from samestep.bench.comparison_table import comparison_table
        from samestep.bench.rounds import TimeBudget

        request = make_request(job, settings, given)
        say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
        if sync is not None:
            plans = {"rounds": rounds, "steps-per-round": steps_per_round, "only": only, "warm-heap": warm_heap}
            if (strange := next((name for name, value in plans.items() if value), None)) is not None:
                raise PlanRefused(
                    f"--{strange} is for the comparison of plans, --sync compares policies: leave one out"
                )
            _policies(request, sync, target_loss, window, svg, as_json=as_json, say=say)
            return
        unfit = {"target-loss": target_loss, "window": window}
        if (strange := next((name for name, value in unfit.items() if value is not None), None)) is not None:
            raise PlanRefused(f"--{strange} is for --sync: leave it out, or give --sync")
        if request.training.steps is not None:
            raise PlanRefused("--steps is the length of training under --sync; rounds have --steps-per-round")
        verdict = _verdict(request, TimeBudget(seconds, rounds, steps_per_round), only, warm_heap=warm_heap, say=say)
        print(comparison_table(verdict))
        if svg is not None:
            Path(svg).write_text(comparison_picture(verdict, f"A step of {job}"))
        if as_json:
            print_json(verdict.as_json())


def _verdict(request: Request, pace: Any, only: str, *, warm_heap: bool, say: Callable[[str], None]) -> Any:
    from samestep.bench.comparison import compare
    from samestep.bench.contestants import chosen, own_contestants, peers

    with stopping("stopped before the comparison was done"):
        say("planning")
        workers = request.planning.workers or request.planning.default_workers
        everybody = [*own_contestants(request), *peers(workers, physical_cores())]
        names = [name.strip() for name in only.split(",") if name.strip()]
        return compare(chosen(everybody, names), request, pace, warm_heap=warm_heap, say=say)


def _policies(
    request: Request,
    sync: str,
    target: float | None,
    window: int | None,
    svg: str | None,
    *,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    """Compare policies under one plan: each worker has the whole model, unless another plan was asked for."""
    from samestep.bench.policies_picture import policies_picture
    from samestep.bench.policies_table import policies_table
    from samestep.bench.policy_comparison import DEFAULT, compare_policies, policies_of

    if target is not None and not math.isfinite(target):
        raise PlanRefused(f"--target-loss {target}: give a finite loss, or none for what exact steps come to")
    with stopping("stopped before the comparison was done"):
        if request.planning.plan == "auto":
            request = request.but(plan="data")
        found = compare_policies(request, policies_of(sync or DEFAULT), target, window, say)
    print(policies_table(found))
    if svg is not None:
        Path(svg).write_text(
            policies_picture(found, f"Training {request.source.function} of {Path(str(request.source.file)).name}")
        )
    if as_json:
        print_json(found.as_json())
