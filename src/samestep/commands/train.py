"""`samestep train`."""

import sys
from typing import Any

import click

from samestep.commands.exit_codes import exit_codes, print_json
from samestep.commands.options import JOB, PLANNING, TRAINING, options
from samestep.commands.trace import traced_steps, write_trace
from samestep.commands.training_command import run
from samestep.launch.run.progress import summary


@click.command()
@JOB
@options(*PLANNING, *TRAINING)
@click.option("--trace", type=click.Path(dir_okay=False), metavar="FILE", help="Write who did what when, for Perfetto.")
@options("trace_steps")
@click.option("--json", "as_json", is_flag=True, help="Print the report as the last line of stdout.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def train(
    job: str,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    trace: str | None,
    trace_steps: int | None,
    **given: Any,
) -> None:
    """Train the job that FUNCTION (default: job) in FILE returns."""
    with exit_codes():
        report = run(job, settings, {**given, "trace_steps": traced_steps(trace, trace_steps)}, quiet=quiet)
        if report is not None:
            if not quiet:
                print(summary(report), file=sys.stderr)
            if as_json:
                print_json(report.as_json())
            if trace is not None:
                write_trace(report, trace, None if quiet else sys.stderr)
