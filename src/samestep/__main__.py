"""`python -m samestep`."""

from samestep.cli import main

main()
