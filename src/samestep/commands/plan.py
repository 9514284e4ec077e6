"""`samestep plan`."""

from pathlib import Path
from typing import Any

import click

from samestep.commands.ending import exit_codes
from samestep.commands.options import make_request, planning_options
from samestep.launch.launcher import Launcher
from samestep.outline import Outline


@click.command()
@planning_options
@click.option("--draw", is_flag=True, help="Draw the step: who computes what when.")
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the drawing as SVG.")
def plan(job: str, settings: tuple[str, ...], draw: bool, svg: str | None, **options: Any) -> None:
    """Show the plan that `train` would run with these options, what it moves, and its schedule."""
    with exit_codes():
        request = make_request(job, settings, {**options, "save": None, "checkpoint": None})
        with Launcher() as launcher:
            found = Outline(**launcher.outline(request))
        print(found.text(draw=draw))
        if svg is not None:
            Path(svg).write_text(found.svg)
