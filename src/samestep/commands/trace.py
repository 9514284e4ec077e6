"""`samestep trace`, and the trace of `samestep train --trace`."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from samestep.commands.exit_codes import exit_codes
from samestep.commands.options import JOB, PLANNING, options
from samestep.commands.training_command import run
from samestep.diagnose.summary import trace_summary
from samestep.errors import Refused
from samestep.job.report import Report
from samestep.trace.chrome import chrome_trace

STEPS = 20


@click.command()
@JOB
@options(*PLANNING, "timeout")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The file to write, for ui.perfetto.dev.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def trace(job: str, settings: tuple[str, ...], out: str, quiet: bool, **given: Any) -> None:
    """Train some steps (default: 20), write who did what when, and say what to change."""
    with exit_codes():
        if given["steps"] is None and given["epochs"] is None:
            given["steps"] = STEPS
        steps = traced_steps(out, given["steps"])
        report = run(job, settings, {**given, "trace_steps": steps}, quiet=quiet)
        if report is not None:
            write_trace(report, out, sys.stdout)


def traced_steps(file: str | None, steps: int | None) -> int | None:
    """Number of steps to trace. Raises Refused, before training, for a file that cannot be written."""
    if file is None:
        if steps is not None:
            raise Refused(f"--trace-steps {steps} says how much of the run to trace: say where to with --trace FILE")
        return None
    if not Path(file).parent.is_dir() or Path(file).is_dir():
        raise Refused(f"{file} cannot be written: {Path(file).parent} must be a folder, and FILE no folder")
    return STEPS if steps is None else steps


def write_trace(report: Report, file: str, stream: TextIO | None) -> None:
    """Write the file, and a summary to `stream`, if given. A run without steps has no summary."""
    Path(file).write_text(json.dumps(chrome_trace(report.traces)))
    if stream is not None and all(trace.events for trace in report.traces):
        print(trace_summary(report.traces, report.prediction), file=stream)
        print(f"{file}: open it at ui.perfetto.dev or chrome://tracing", file=stream)
