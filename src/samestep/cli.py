"""The command line. It imports no torch: `samestep --help` answers at once."""

import contextlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from samestep.errors import Interrupted, JobRefused, PlanRefused, Refused, SamestepError
from samestep.launch.environment import (
    is_building,
    is_pinned,
    mkl_mode,
    physical_cores,
    start_again_pinned,
    unused_launcher,
    world,
)
from samestep.launch.launcher import Launcher, Silent
from samestep.launch.outcome import WorkerError
from samestep.launch.progress import Progress, summary
from samestep.launch.request import DEVICES, Request, plan_text
from samestep.outline import Outline
from samestep.plan import TRANSPORTS
from samestep.report import Report

PLANNING = (
    click.option("--workers", type=int, help="Worker processes. Default: physical cores, at most the shards."),
    click.option("--shards", type=int, help="S, into how many shards a batch is cut. Part of the numbers."),
    click.option("--assign", metavar="N,N,...", help="Shards per worker, for instance 5,3."),
    click.option("--hosts", metavar="N,N,...", help="Workers on each host, for `plan`; launchers say it themselves."),
    click.option("--threads", type=int, help="Intra-op threads per worker. Part of the numbers. Default: 1."),
    click.option("--transport", type=click.Choice(TRANSPORTS), help="Default: processes. Threads are for tests."),
    click.option(
        "--plan",
        default="data",
        metavar="data|slices|hybrid|pipeline|FILE",
        help="Who computes what: a plan's name or file.",
    ),
    click.option("--slices", type=int, metavar="K", help="Slices per sliced layer. Part of the numbers. Default: 4."),
    click.option("--memory-limit", metavar="SIZE", help="What a worker may need at most, for instance 800MB."),
    click.option("--numerics", metavar="LINE", help='A line that another run printed, "seed=0 shards=4 ...".'),
    click.option("--codec", metavar="NAME@LEVELS", help='Compress gradients, "int8@2". Part of the numbers.'),
    click.option("--steps", type=int, help="Train for so many optimizer steps."),
    click.option("--epochs", type=int, help="Train for so many passes over the data."),
    click.option("--seed", type=int, help="Of everything random. Part of the numbers."),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="An argument of the job function."),
    click.option("--device", type=click.Choice(DEVICES), default="cpu", help="Where workers compute, one on each GPU."),
)


def planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `train` and `plan` have in common."""
    for option in reversed(PLANNING):
        command = option(command)
    return click.argument("job", metavar="FILE[:FUNCTION]")(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samestep")
def main() -> None:
    """Run an ordinary PyTorch training step on many workers: the same step, bit for bit."""


@main.command()
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
    with _exit_codes():
        if is_building():
            raise guard_missing()
        others = world()
        apart = others is not None or options["device"] != "cpu"  # not started by a fork server of our own
        if apart and not is_pinned():
            start_again_pinned()
        request = _request(job, settings, options)
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


@main.command()
@planning_options
@click.option("--draw", is_flag=True, help="Draw the step: who computes what when.")
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the drawing as SVG.")
def plan(job: str, settings: tuple[str, ...], draw: bool, svg: str | None, **options: Any) -> None:
    """Show the plan that `train` would run with these options, what it moves, and its schedule."""
    with _exit_codes():
        request = _request(job, settings, {**options, "save": None, "checkpoint": None})
        with Launcher() as launcher:
            found = Outline(**launcher.outline(request))
        print(found.text(draw=draw))
        if svg is not None:
            Path(svg).write_text(found.svg)


def _request(job: str, settings: tuple[str, ...], options: dict[str, Any]) -> Request:
    """The command line as a request. Raises Refused for what can be seen without torch."""
    file, function = split_job(job)
    for name in ("save", "checkpoint"):
        if options[name] is not None:
            options[name] = str(Path(options[name]).absolute())
    request = Request(
        run=uuid.uuid4().hex[:12],
        file=str(file),
        function=function,
        settings=dict(_setting(text) for text in settings),
        settings_are_text=True,
        assign=None if options["assign"] is None else parse_assign(options["assign"]),
        hosts=None if options["hosts"] is None else parse_assign(options["hosts"], "--hosts"),
        memory_limit=None if options["memory_limit"] is None else parse_size(options["memory_limit"]),
        default_workers=physical_cores(),
        plan_text=plan_text(options["plan"]),
        folder=str(Path.cwd()),
        path=tuple(sys.path),
        mkl=mkl_mode(),
        **{name: value for name, value in options.items() if name not in ("assign", "hosts", "memory_limit")},
    )
    request.check()
    return request


def split_job(job: str) -> tuple[Path, str]:
    """FILE[:FUNCTION] as a path and a name. Raises JobRefused when there is no such file."""
    name, colon, function = job.rpartition(":")
    file, function = (Path(name), function) if colon and name else (Path(job), "job")
    if not file.is_file():
        raise JobRefused(
            f"there is no file {file} (looked in {Path.cwd()}): name a Python file that has the job function"
        )
    if file.suffix != ".py":
        raise JobRefused(f"{file} is not a Python file: a job is a function in a .py file")
    return file.absolute(), function or "job"


def parse_assign(text: str, option: str = "--assign") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PlanRefused(
            f"{option} {text!r} is not a list of numbers: write one for every worker or host, for instance 5,3"
        ) from None


SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    number = text.rstrip("KMGB ")
    unit = text[len(number) :].strip()
    try:
        return int(float(number) * SIZES[unit])
    except (ValueError, KeyError):
        raise PlanRefused(f"--memory-limit {text!r} is not a size: write for instance 800MB or 2GB") from None


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise JobRefused(f"--set {text!r} is not NAME=VALUE: write for instance --set lr=0.1")
    return name, value


def guard_missing() -> JobRefused:
    return JobRefused(
        "this script trains while workers import it to find the job: put what it runs under\n"
        '    if __name__ == "__main__":'
    )


def _show(report: Report, *, as_json: bool, quiet: bool) -> None:
    if not quiet:
        print(summary(report), file=sys.stderr)
    if as_json:
        print(json.dumps(report.as_json()), flush=True)


def show_error(error: SamestepError) -> None:
    """One line first, then one traceback, if there is any; once."""
    if error.is_shown:
        return
    if not error.is_told:
        print(f"samestep: {error}" if isinstance(error, Refused) else str(error), file=sys.stderr)
    if isinstance(error, WorkerError) and error.traceback:
        print("\n" + error.traceback.rstrip(), file=sys.stderr)
    sys.stderr.flush()
    error.is_shown = True


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """What went wrong is shown; the exit code of the error."""
    try:
        yield
    except SamestepError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped before training", file=sys.stderr)
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
