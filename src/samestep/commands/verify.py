"""`samestep verify`: a job of ours, or with `--script` anybody's training script."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from samestep.commands.exit_codes import exit_codes, print_json
from samestep.commands.options import PLANNING, make_request, options
from samestep.errors import PlanRefused, Refused
from samestep.launch.environment import world
from samestep.launch.run.launcher import Launcher

FOR_SCRIPTS = {"workers": 2, "steps": 3}
"""Options of a job that `--script` takes, with their defaults."""

SCRIPT_SECONDS = 60.0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, metavar="FILE[:FUNCTION]", type=click.UNPROCESSED)
@options(*PLANNING)
@click.option("--script", type=click.Path(dir_okay=False), help="A PyTorch script instead; words after it are its own.")
@click.option("--reference-arguments", help="With --script: its arguments on one process, in one string.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="With --script: seconds that a run may take. Default: 60.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as the last line of stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def verify(
    words: tuple[str, ...],
    settings: tuple[str, ...],
    script: str | None,
    reference_arguments: str | None,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Prove that a plan's step is that of one worker, and of a plain loop; or say where not, and why.

    Exit code 0: the same. 1: not the same.
    """
    with exit_codes():
        if script is not None:
            unasked = {"device": "cpu", "probe": False}  # 0 counts as given
            unfit = [n for n, v in given.items() if n not in FOR_SCRIPTS and v != unasked.get(n)]
            if unfit or settings:
                name = unfit[0].replace("_", "-") if unfit else "set"
                raise Refused(f"--{name} is for jobs of samestep's, and --script runs a script")
            is_same = _script(Path(script), words, given, reference_arguments, timeout, as_json=as_json)
        else:
            if timeout is not None or reference_arguments is not None:
                raise Refused("--timeout and --reference-arguments are for --script: leave them out")
            if len(words) != 1 or words[0].startswith("-"):
                strange = next((word for word in words if word.startswith("-")), None)
                raise Refused(
                    f"verify has no option {strange}"
                    if strange
                    else "verify takes one job, FILE[:FUNCTION], or --script"
                )
            is_same = _job(words[0], settings, given, as_json=as_json, quiet=quiet)
    if not is_same:
        sys.exit(1)


def _job(job: str, settings: tuple[str, ...], given: dict[str, Any], *, as_json: bool, quiet: bool) -> bool:
    others = world()
    if others is not None and others.size > 1:
        raise PlanRefused(f"verify starts its own workers, and {others.launcher} has started it: run it by itself")
    from samestep.launch.run.verify_run import verify_job  # imports torch

    request = make_request(job, settings, given)
    say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
    with Launcher() as launcher:
        verdict = verify_job(request, launcher, say)
    print(verdict.text())
    if as_json:
        print_json(verdict.as_json())
    return verdict.is_same


def _script(
    script: Path, arguments: tuple[str, ...], given: dict[str, Any], alone: str | None, timeout: float | None, *,
    as_json: bool,
) -> bool:  # fmt: skip
    from samestep.verification.script.verify_script import verify_script  # imports torch

    asked = FOR_SCRIPTS | {name: given[name] for name in FOR_SCRIPTS if given[name] is not None}
    reference = None if alone is None else shlex.split(alone)
    verdict = verify_script(
        script, arguments, timeout=timeout or SCRIPT_SECONDS, reference_arguments=reference, **asked
    )
    print(verdict)
    if as_json:
        print_json(verdict.as_json())
    return not verdict.findings
