"""One plan that takes its turns: `python contender.py MODEL SHARDS PLANFILE FOLDER`.

Without RANK in the environment it starts the plan's workers itself; with RANK it is one of them.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rounds import Turns

import samestep


class TurnsCallback:
    """Lets worker 0, which calls it, wait for its turn between steps; the others wait for worker 0."""

    def __init__(self, folder: str) -> None:
        self._turns = Turns(folder)

    def __call__(self, step: int, loss: float, metrics: object) -> None:
        if step == 0:
            self._turns.begin()
        else:
            self._turns.step()


def main(model: str, shards: str, plan: str, folder: str) -> None:
    from job import job

    with contextlib.suppress(samestep.TrainingFailed):  # worker 0 leaves when there are no more rounds
        samestep.train(job, settings={"model": model, "shards": int(shards), "folder": folder}, plan=plan)


if __name__ == "__main__":
    main(*sys.argv[1:])
