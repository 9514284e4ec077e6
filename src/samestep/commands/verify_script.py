"""`samestep verify --script`: other people's scripts."""

import json
import shlex
from pathlib import Path

import click

from samestep.commands.ending import exit_codes


@click.command("verify-script", context_settings={"ignore_unknown_options": True})
@click.argument("script", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--workers", default=2, show_default=True, help="Processes, as torchrun would start them.")
@click.option("--steps", default=3, show_default=True, help="Optimizer steps to compare.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds that a run may take.")
@click.option("--reference-arguments", help="The script's arguments on one process, in one string.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_script(
    script: Path,
    arguments: tuple[str, ...],
    workers: int,
    steps: int,
    timeout: float,
    reference_arguments: str | None,
    as_json: bool,
) -> None:
    """Run a PyTorch script on several processes and on one, and say where and why they differ."""
    from samestep.verify.scripts.running import verify_script as run

    with exit_codes():
        alone = None if reference_arguments is None else shlex.split(reference_arguments)
        verdict = run(script, arguments, workers, steps, timeout, alone)
        click.echo(json.dumps(verdict.as_json(), indent=2) if as_json else str(verdict))
    raise SystemExit(1 if verdict.findings else 0)
