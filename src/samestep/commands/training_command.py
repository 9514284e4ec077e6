"""Train for a command: on workers of its own, or as one of the workers that a launcher has started."""

import sys
from typing import Any

from samestep.commands.exit_codes import show_error
from samestep.commands.options import guard_missing, make_request
from samestep.errors import SamestepError
from samestep.job.report import Report
from samestep.launch.environment import is_building, is_pinned, start_again_pinned, unused_launcher, world
from samestep.launch.run.launcher import Launcher
from samestep.launch.run.progress import OnlyStalls, Progress


def run(job: str, settings: tuple[str, ...], given: dict[str, Any], *, quiet: bool) -> Report | None:
    """Train with the options of the command line; the report, in worker 0 only.

    Raises Refused, TrainingFailed or Interrupted. May replace this process by one with the pinned environment.
    """
    if is_building():
        raise guard_missing()
    others = world()
    joins = others is not None or given["device"] != "cpu"  # workers are not forked by a server of our own
    if joins and not is_pinned():
        start_again_pinned()
    request = make_request(job, settings, given)
    if (warning := unused_launcher()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    progress = None if quiet else Progress()

    def show(error: SamestepError) -> None:
        if progress is not None:
            progress.close()  # its bar would overwrite the error
        show_error(error)

    try:
        if joins:
            from samestep.launch.hosts.join_run import train_together  # imports torch

            report = train_together(request, others, (progress or OnlyStalls()).see, show)
        else:
            with Launcher() as launcher:
                report = launcher.run(request, progress or OnlyStalls())
    finally:
        if progress is not None:
            progress.close()
    return report if others is None or others.rank == 0 else None
