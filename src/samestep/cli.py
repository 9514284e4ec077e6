"""The command line. It imports no torch: `samestep --help` answers at once."""

import click

from samestep.commands.bench import bench
from samestep.commands.doctor import doctor
from samestep.commands.plan import plan
from samestep.commands.simulate import simulate
from samestep.commands.trace import trace
from samestep.commands.train import train
from samestep.commands.verify_script import verify_script


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samestep")
def main() -> None:
    """Run an ordinary PyTorch training step on many workers: the same step, bit for bit."""


for command in (train, plan, simulate, bench, trace, doctor, verify_script):
    main.add_command(command)


if __name__ == "__main__":
    main()
