"""`samestep train`."""

import json
import sys
from typing import Any

import click

from samestep.commands.ending import exit_codes, show_error
from samestep.commands.options import guard_missing, make_request, planning_options
from samestep.errors import SamestepError
from samestep.launch.environment import is_building, is_pinned, start_again_pinned, unused_launcher, world
from samestep.launch.launcher import Launcher, Silent
from samestep.launch.progress import Progress, summary
from samestep.report import Report


@click.command()
@planning_options
@click.option("--save", type=click.Path(dir_okay=False), help="Write the weights as safetensors at the end.")
@click.option("--checkpoint", type=click.Path(file_okay=False), help="Folder for checkpoints.")
@click.option("--every", type=int, metavar="N", help="A checkpoint every N steps, not only at the end.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, on any number of workers.")
@click.option("--allow-nan", is_flag=True, help="Go on when a loss is NaN or infinite.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as the last line of stdout.")
@click.option(
    "--timeout", type=float, default=300.0, help="Seconds that workers on several hosts wait for one another."
)
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def train(job: str, settings: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Train the job that FUNCTION (default: job) in FILE returns."""
    with exit_codes():
        if is_building():
            raise guard_missing()
        others = world()
        apart = others is not None or options["device"] != "cpu"  # not started by a fork server of our own
        if apart and not is_pinned():
            start_again_pinned()
        request = make_request(job, settings, options)
        if (warning := unused_launcher()) is not None:
            print(f"warning: {warning}", file=sys.stderr)
        progress = None if quiet else Progress()

        def show(error: SamestepError) -> None:
            if progress is not None:
                progress.close()  # else its bar goes over it
            show_error(error)

        try:
            if apart:
                from samestep.launch.together import train_together  # imports torch

                report = train_together(request, others, (progress or Silent()).see, show)
            else:
                with Launcher() as launcher:
                    report = launcher.run(request, progress or Silent())
        finally:
            if progress is not None:
                progress.close()
        if others is None or others.rank == 0:
            _show(report, as_json=as_json, quiet=quiet)


def _show(report: Report, *, as_json: bool, quiet: bool) -> None:
    if not quiet:
        print(summary(report), file=sys.stderr)
    if as_json:
        print(json.dumps(report.as_json()), flush=True)
