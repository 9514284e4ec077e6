"""`samestep doctor`."""

import json
import sys

import click

from samestep.commands.exit_codes import exit_codes
from samestep.doctor.facts_text import as_text, cluster_file
from samestep.doctor.inspect_machine import inspect_machine, measure_in_own_process
from samestep.errors import SamestepError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--cluster", is_flag=True, help="Print this machine as a cluster file, TOML.")
def doctor(as_json: bool, cluster: bool) -> None:
    """Look at this machine and measure it: what a bug report needs, or a cluster file."""
    with exit_codes():
        print("measuring, a few seconds ...", file=sys.stderr)
        if cluster:
            found = measure_in_own_process()
            print(cluster_file(inspect_machine(found), found), end="")
            return
        try:
            facts = inspect_machine(measure_in_own_process())
        except SamestepError as error:
            facts = inspect_machine(None, str(error))  # the rest is still reported, with the reason why this is missing
        print(json.dumps(facts.as_json()) if as_json else as_text(facts))
