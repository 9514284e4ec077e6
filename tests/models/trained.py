"""The zoo's models as jobs: `samestep train tests/models/trained.py --set name=bert --plan pipeline --workers 2`."""

import sys
from pathlib import Path

import samestep

if (TESTS := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.insert(0, TESTS)

from models.catalogue import specimen


def job(name: str = "bert", calm: bool = False) -> samestep.Job:
    return specimen(name).job(calm=calm)
