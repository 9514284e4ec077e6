"""`samestep verify`."""

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from samestep.commands.ending import exit_codes
from samestep.commands.options import make_request, planning_options
from samestep.errors import PlanRefused
from samestep.launch.environment import world
from samestep.launch.launcher import Launcher


@click.command()
@planning_options
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as the last line of stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def verify(job: str, settings: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Prove that a plan's step is that of one worker, and of a plain loop; or say where not, and why.

    Exit code 0: the same. 1: not the same.
    """
    with exit_codes():
        others = world()
        if others is not None and others.size > 1:
            raise PlanRefused(f"verify starts its own workers, and {others.launcher} has started it: run it by itself")
        from samestep.launch.verifying import verify as found_by  # imports torch

        request = make_request(job, settings, {**options, "save": None, "checkpoint": None})
        say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
        with Launcher() as launcher:
            verdict = found_by(request, launcher, say)
        print(verdict.text())
        if as_json:
            print(json.dumps(verdict.as_json()), flush=True)
    if not verdict.is_same:
        sys.exit(1)
