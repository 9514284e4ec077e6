"""`samestep plan`."""

from pathlib import Path
from typing import Any

import click

from samestep.cluster import Cluster
from samestep.commands.ending import exit_codes
from samestep.commands.options import make_request, planning_options
from samestep.commands.tuning import tune_numerics
from samestep.errors import Refused
from samestep.launch.launcher import Launcher
from samestep.outline import Outline


@click.command()
@planning_options
@click.option("--draw", is_flag=True, help="Draw the step: who computes what when.")
@click.option("--cluster", type=click.Path(dir_okay=False), help="Plan for the hosts in this file, not for this one.")
@click.option("--described", is_flag=True, help="For --cluster: costs from FLOPs and bytes, not measured here.")
@click.option("--tune-numerics", "tune", is_flag=True, help="Choose shards, threads and slices for this machine.")
@click.option("--lock", is_flag=True, help="Keep them in a file beside the job, which train and plan read.")
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the drawing as SVG.")
def plan(
    job: str,
    settings: tuple[str, ...],
    draw: bool,
    svg: str | None,
    tune: bool,
    lock: bool,
    cluster: str | None,
    **options: Any,
) -> None:
    """Show the plan that `train` would run with these options, what it moves, and its schedule."""
    with exit_codes():
        there = None if cluster is None else str(Cluster.read(cluster))
        if there is None and options["described"]:
            raise Refused("--described takes costs from what a cluster's file says: add --cluster FILE")
        request = make_request(job, settings, {**options, "save": None, "checkpoint": None, "cluster": there})
        if tune or lock:
            tune_numerics(request, lock=lock)
            return
        with Launcher() as launcher:
            found = Outline(**launcher.outline(request))
        print(found.text(draw=draw))
        if svg is not None:
            Path(svg).write_text(found.svg)
