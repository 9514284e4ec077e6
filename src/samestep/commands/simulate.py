"""`samestep simulate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from samestep.commands.exit_codes import exit_codes, print_json
from samestep.commands.options import JOB, make_request, options
from samestep.errors import PlanRefused, Refused
from samestep.launch.run.launcher import Launcher
from samestep.plan.cluster import Cluster
from samestep.planner.explain.scaling_text import svg as picture
from samestep.planner.explain.scaling_text import text
from samestep.planner.search.scaling_curve import Scaling
from samestep.system.json_values import value_from


@click.command()
@JOB
@options("shards", "threads", "slices", "profile", "numerics", "codec", "sync", "seed", "settings")
@click.option("--cluster", required=True, type=click.Path(dir_okay=False), help="Hosts, workers and links, TOML.")
@click.option("--workers", metavar="N,N,...", help='Numbers of workers; "1,2,4,...,1024" doubles. Default: 1,2,4,...')
@click.option("--described", is_flag=True, help="Costs from FLOPs and bytes, not measured on this machine.")
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the curve as a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as the last line of stdout.")
def simulate(
    job: str, settings: tuple[str, ...], cluster: str, workers: str | None, svg: str | None, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Predict step time, efficiency and the best plan for many numbers of workers. Nothing is trained."""
    with exit_codes():
        there = Cluster.read(cluster)
        counts = counts_of(workers or f"1,2,...,{there.workers}")
        there.first(max(counts))  # refused at once, before anything is measured
        if svg is not None and (not Path(svg).parent.is_dir() or Path(svg).is_dir()):
            raise Refused(f"--svg {svg} cannot be written: {Path(svg).parent} must be a folder, and FILE no folder")
        request = make_request(job, settings, {**given, "plan": "auto", "cluster": str(there)})
        with Launcher() as launcher:
            found: Scaling = value_from(Scaling, launcher.simulated(request, counts))
        print(text(found))
        if svg is not None:
            Path(svg).write_text(picture(found))
        if as_json:
            print_json(asdict(found))


def counts_of(words: str) -> tuple[int, ...]:
    """1,2,4,...,1024: numbers that grow; `...` goes on by doubling, up to the number that follows it.

    Raises PlanRefused for anything else.
    """
    parts = [part.strip() for part in words.split(",")]
    found: list[int] = []
    for at, part in enumerate(parts):
        if part == "..." and found and at + 1 < len(parts) and parts[at + 1].isdecimal():
            while found[-1] * 2 < int(parts[at + 1]):
                found.append(found[-1] * 2)
        elif part.isdecimal() and int(part) > (found[-1] if found else 0):
            found.append(int(part))
        elif part.isdecimal() and found and int(part) == found[-1] and parts[at - 1] == "...":
            continue
        else:
            raise PlanRefused(
                f"--workers {words!r}: {part!r} at place {at + 1} is none of growing numbers of at least 1; write for "
                "instance 1,2,4,...,1024, where ... doubles"
            )
    return tuple(found)
