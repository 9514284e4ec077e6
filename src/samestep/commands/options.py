"""Command-line options from the table of `launch/request/options.py`, and the request that they make together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from samestep.errors import JobRefused, PlanRefused
from samestep.launch.request.lock_file import read_lock
from samestep.launch.request.options import OPTIONS, JobSource, Option, Spelling
from samestep.launch.request.request import Request

Command = Callable[..., Any]

PLANNING = ("workers", "shards", "assign", "hosts", "threads", "transport", "plan", "probe", "slices", "profile",
            "memory_limit", "numerics", "codec", "sync", "steps", "epochs", "rebalance", "seed", "settings",
            "device")  # fmt: skip
TRAINING = ("save", "checkpoint", "every", "resume", "change", "audit", "allow_nan", "timeout", "stall")

JOB = click.argument("job", metavar="FILE[:FUNCTION]")
TYPES: dict[Spelling | None, click.Path] = {
    Spelling.FILE: click.Path(dir_okay=False),
    Spelling.FOLDER: click.Path(file_okay=False),
}


def options(*names: str) -> Callable[[Command], Command]:
    """Options of a run by the names that Python uses; `settings` is --set."""

    def give(command: Command) -> Command:
        for name in reversed(names):
            command = click_option(name)(command)
        return command

    return give


def click_option(name: str) -> Callable[[Command], Command]:
    if name == "settings":
        return click.option(
            "--set", "settings", multiple=True, metavar="NAME=VALUE", help="An argument of the job function."
        )
    option, spelled = OPTIONS[name], f"--{name.replace('_', '-')}"
    flag = option.flag
    if option.kind is bool:
        return click.option(spelled, is_flag=True, help=flag.help)
    default = None if name == "plan" else option.default  # None: nobody has asked for a plan
    return click.option(spelled, type=_type(option), default=default, metavar=flag.metavar, help=flag.help)


def _type(option: Option) -> Any:
    if option.flag.choices:
        return click.Choice(option.flag.choices)
    if option.name in PARSERS:
        return str
    return TYPES.get(option.flag.spelling, option.kind)


def make_request(job: str, settings: tuple[str, ...], given: dict[str, Any]) -> Request:
    """The command line as a request. given: options that have values. Raises Refused for what needs no torch."""
    file, function = split_job(job)
    given = {
        name: PARSERS[name](value) if name in PARSERS else value for name, value in given.items() if value is not None
    }
    plan = given.pop("plan", None)
    source = JobSource(
        function=function,
        file=str(file),
        settings=dict(_setting(text) for text in settings),
        settings_are_text=True,
        locked=None if given.pop("tune", False) else read_lock(file),
    )
    return Request.made_here(source, plan, plan_is_asked=plan is not None or given.get("probe", False), **given)


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


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


PARSERS: dict[str, Callable[[Any], Any]] = {
    "assign": parse_assign,
    "hosts": lambda text: parse_assign(text, "--hosts"),
    "change": lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
    "memory_limit": parse_size,
    "save": _absolute,
    "checkpoint": _absolute,
    "profile": _absolute,
}
"""How the texts of options are read whose values are not what click reads."""


def guard_missing() -> JobRefused:
    return JobRefused(
        "this script trains while workers import it to find the job: put what it runs under\n"
        '    if __name__ == "__main__":'
    )
