"""`samestep doctor`."""

import json
import sys

import click

from samestep.commands.exit_codes import exit_codes
from samestep.doctor.facts_text import as_text
from samestep.doctor.machine_facts import look
from samestep.doctor.measuring_process import measured
from samestep.doctor.own_cluster import TO_FILL_IN, own_cluster
from samestep.errors import SamestepError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--cluster", is_flag=True, help="Print this machine as a cluster file, TOML.")
def doctor(as_json: bool, cluster: bool) -> None:
    """Look at this machine and measure it: what a bug report needs, or a cluster file."""
    with exit_codes():
        print("measuring, a few seconds ...", file=sys.stderr)
        if cluster:
            found = measured()
            print(f"{own_cluster(look(found), found)}{TO_FILL_IN}", end="")
            return
        try:
            facts = look(measured())
        except SamestepError as error:
            facts = look(None, str(error))  # all the rest is told, and why this is missing
        print(json.dumps(facts.as_json()) if as_json else as_text(facts))
