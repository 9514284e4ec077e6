"""The options that commands share, and the request that they make together."""

import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from samestep.errors import JobRefused, PlanRefused
from samestep.launch.environment import mkl_mode, physical_cores
from samestep.launch.request.lock_file import read_lock
from samestep.launch.request.request import DEVICES, Request, plan_text
from samestep.plan.plan import TRANSPORTS

PLANNING = (
    click.option("--workers", type=int, help="Worker processes. Default: physical cores, at most the shards."),
    click.option("--shards", type=int, help="S, into how many shards a batch is cut. Part of the numbers."),
    click.option("--assign", metavar="N,N,...", help="Shards per worker, for instance 5,3."),
    click.option("--hosts", metavar="N,N,...", help="Workers on each host, for `plan`; launchers say it themselves."),
    click.option("--threads", type=int, help="Intra-op threads per worker. Part of the numbers. Default: 1."),
    click.option("--transport", type=click.Choice(TRANSPORTS), help="Default: processes. Threads are for tests."),
    click.option(
        "--plan",
        default=None,
        metavar="auto|data|slices|hybrid|pipeline|FILE",
        help="Who computes what: a plan's name or file. Default: auto.",
    ),
    click.option("--probe", is_flag=True, help="Run the best two plans for a moment, and take the faster."),
    click.option("--slices", type=int, metavar="K", help="Slices per sliced layer. Part of the numbers. Default: 4."),
    click.option("--profile", type=click.Path(dir_okay=False), help="Where what was measured is kept."),
    click.option("--memory-limit", metavar="SIZE", help="What a worker may need at most, for instance 800MB."),
    click.option("--numerics", metavar="LINE", help='A line that another run printed, "seed=0 shards=4 ...".'),
    click.option("--codec", metavar="NAME@LEVELS", help='Compress gradients, "int8@2". Part of the numbers.'),
    click.option("--sync", metavar="POLICY", help='When workers agree, "stale(1)", "local(16)". Part of the numbers.'),
    click.option("--steps", type=int, help="Train for so many optimizer steps."),
    click.option("--epochs", type=int, help="Train for so many passes over the data."),
    click.option("--rebalance", metavar="on|off", help="Deal shards anew when workers get slower or faster."),
    click.option("--seed", type=int, help="Of everything random. Part of the numbers."),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="An argument of the job function."),
    click.option("--device", type=click.Choice(DEVICES), default="cpu", help="Where workers compute, one on each GPU."),
)


def some_options(options: Sequence[Callable[..., Any]], names: Sequence[str]) -> Callable[..., Any]:
    """Those options that have one of these names."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            if option(lambda: None).__click_params__[0].opts[0] in names:
                command = option(command)
        return command

    return give


GIVEN = ("assign", "hosts", "memory_limit", "plan")  # what is not passed on as it is


def planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `train` and `plan` have in common."""
    for option in reversed(PLANNING):
        command = option(command)
    return click.argument("job", metavar="FILE[:FUNCTION]")(command)


def make_request(job: str, settings: tuple[str, ...], options: dict[str, Any]) -> Request:
    """The command line as a request. Raises Refused for what can be seen without torch."""
    file, function = split_job(job)
    for name in ("save", "checkpoint", "profile"):
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
        locked=None if options.get("tune") else read_lock(file),
        plan=options["plan"] or "auto",
        plan_is_asked=options["plan"] is not None or options.get("probe", False),
        plan_text=plan_text(options["plan"] or "auto"),
        folder=str(Path.cwd()),
        path=tuple(sys.path),
        mkl=mkl_mode(),
        **{name: value for name, value in options.items() if name not in GIVEN},
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
