"""`samestep train`."""

import sys
from typing import Any

import click

from samestep.commands.exit_codes import exit_codes, print_json
from samestep.commands.options import planning_options
from samestep.commands.trace import traced_steps, write_trace
from samestep.commands.training_command import run
from samestep.job.report import Report
from samestep.launch.run.progress import summary


@click.command()
@planning_options
@click.option("--save", type=click.Path(dir_okay=False), help="Write the weights as safetensors at the end.")
@click.option("--checkpoint", type=click.Path(file_okay=False), help="Folder for checkpoints.")
@click.option("--every", type=int, metavar="N", help="A checkpoint every N steps, not only at the end.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, on any number of workers.")
@click.option("--audit", type=int, metavar="K", help="Workers hold states together every K steps (32); 0: never.")
@click.option("--allow-nan", is_flag=True, help="Go on when a loss is NaN or infinite.")
@click.option("--trace", type=click.Path(dir_okay=False), metavar="FILE", help="Write who did what when, for Perfetto.")
@click.option("--trace-steps", type=int, metavar="N", help="Of the last N steps. Default: 20.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as the last line of stdout.")
@click.option(
    "--timeout", type=float, default=300.0, help="Seconds that workers on several hosts wait for one another."
)
@click.option("--stall", type=float, default=30.0, help="Say within so many seconds what holds up a run. 0: never.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def train(
    job: str,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    trace: str | None,
    trace_steps: int | None,
    **options: Any,
) -> None:
    """Train the job that FUNCTION (default: job) in FILE returns."""
    with exit_codes():
        report = run(job, settings, {**options, "trace_steps": traced_steps(trace, trace_steps)}, quiet=quiet)
        if report is not None:
            _show(report, as_json=as_json, quiet=quiet)
            if trace is not None:
                write_trace(report, trace, None if quiet else sys.stderr)


def _show(report: Report, *, as_json: bool, quiet: bool) -> None:
    if not quiet:
        print(summary(report), file=sys.stderr)
    if as_json:
        print_json(report.as_json())
