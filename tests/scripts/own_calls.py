"""Loops of one's own that go wrong on one worker: `own_calls.py WHAT STALL [NOTE]`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import samestep
from jobs_bad import hanging

WHAT, STALL = sys.argv[1], float(sys.argv[2])
LAST = 3  # of the steps before it happens


def main() -> None:
    trainer = samestep.Trainer(hanging.evaluated, stall=STALL, timeout=200)
    odd = trainer.rank == trainer.size - 1
    for step in trainer.steps():
        if step.number < LAST:
            continue
        if odd and len(sys.argv) > 3:
            hanging.note_time(sys.argv[3])
        if WHAT == "under if" and odd:
            trainer.digest()
        if WHAT == "branch" and odd:
            trainer.evaluate()
            continue
        if WHAT == "swapped":
            calls = [trainer.evaluate, trainer.digest]
            for call in reversed(calls) if odd else calls:
                call()
        if WHAT == "uneven" and odd:
            return
        if WHAT == "lingers" and odd:
            time.sleep(hanging.LONG)


if __name__ == "__main__":
    main()
