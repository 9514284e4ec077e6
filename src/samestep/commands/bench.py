"""`samestep bench`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from samestep.commands.ending import exit_codes, stopping
from samestep.commands.options import PLANNING, make_request
from samestep.launch.environment import physical_cores
from samestep.launch.request import Request

SHARED = (
    "--plan",
    "--profile",
    "--workers",
    "--shards",
    "--threads",
    "--slices",
    "--numerics",
    "--codec",
    "--sync",
    "--seed",
    "--set",
)
UNASKED = ("assign", "hosts", "memory_limit", "transport", "steps", "epochs", "save", "checkpoint")


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those of the other commands that make sense for many plans at once."""
    for option in reversed(PLANNING):
        marked = option(lambda: None).__click_params__[0]  # type: ignore[attr-defined]
        if marked.opts[0] in SHARED:
            command = option(command)
    return click.argument("job", metavar="FILE[:FUNCTION]")(command)


@click.command()
@shared_options
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="Default: as many as the time allows.")
@click.option("--steps-per-round", type=click.IntRange(1), metavar="N", help="Default: as the time allows.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=60.0, help="In all. Default: 60.")
@click.option("--only", metavar="NAME,...", default="", help="Contestants by name, for instance samestep,'plain 1'.")
@click.option("--warm-heap", is_flag=True, help="Give PyTorch's own ways our settings of the heap.")
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
    svg: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure our plans and PyTorch's own ways on this machine, in turns, on the job that FUNCTION in FILE returns."""
    with exit_codes():
        from samestep.bench.picture import svg_of  # imports numpy
        from samestep.bench.rounds import Pace
        from samestep.bench.table import text_of

        request = make_request(job, settings, {**options, **dict.fromkeys(UNASKED)})
        say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
        verdict = _verdict(request, Pace(seconds, rounds, steps_per_round), only, warm_heap=warm_heap, say=say)
        print(text_of(verdict))
        if svg is not None:
            Path(svg).write_text(svg_of(verdict, f"A step of {job}"))
        if as_json:
            print(json.dumps(verdict.as_json()), flush=True)


def _verdict(request: Request, pace: Any, only: str, *, warm_heap: bool, say: Callable[[str], None]) -> Any:
    from samestep.bench.compare import compare
    from samestep.bench.contestants import chosen, own_contestants, peers

    with stopping("stopped before the comparison was done"):
        say("planning")
        workers = request.workers or request.default_workers
        everybody = [*own_contestants(request), *peers(workers, physical_cores())]
        names = [name.strip() for name in only.split(",") if name.strip()]
        return compare(chosen(everybody, names), request, pace, warm_heap=warm_heap, say=say)
