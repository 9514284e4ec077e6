"""AlexNet, fully connected layers in slices: `python benchmarks/hybrid/run.py [QUESTION ...]` prints tables."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import Question, ask

HYBRID, DATA = "samestep 2:2:hybrid", "samestep 2:2:data"
CONTENDERS = [HYBRID, DATA, "ddp 2", "plain 2"]
PAIRS = [(HYBRID, other) for other in CONTENDERS[1:]]

QUESTIONS = {
    "batch-16": Question("alexnet", CONTENDERS, PAIRS, 9, 6),
    "batch-32": Question("alexnet-32", CONTENDERS, PAIRS, 9, 4),
}


if __name__ == "__main__":
    for _ in ask(QUESTIONS):
        pass
