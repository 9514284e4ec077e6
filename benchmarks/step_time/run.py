"""How long is a step? `python benchmarks/step_time/run.py [QUESTION ...]` prints tables in Markdown."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import Question, ask

AGAINST_OTHERS = [("samestep 2:2", other) for other in ("ddp 2", "plain 1", "plain 2")]
SPEED_UP = [("samestep 1:2", "samestep 2:2"), ("samestep 1:1", "samestep 2:2"), ("samestep 1:1", "plain 1")]
IN_PLACE = [("samestep 2:8", "samestep 2:8:in-place")]
MLP = ["samestep 2:2", "ddp 2", "plain 1", "plain 2", "samestep 1:1"]
ALL = ["samestep 2:2", "ddp 2", "plain 2", "samestep 1:2", "samestep 1:1", "plain 1"]
TREE = ["samestep 2:8", "samestep 2:8:in-place"]

QUESTIONS = {
    "mlp": Question("mlp", MLP, [*AGAINST_OTHERS, SPEED_UP[-1]], 15, 40),
    "alexnet": Question("alexnet", ["samestep 2:2", "ddp 2", "plain 1", "plain 2"], AGAINST_OTHERS, 9, 6),
    "cnn": Question("cnn", ALL, [*AGAINST_OTHERS, *SPEED_UP], 9, 8),
    "gpt": Question("gpt", ALL, [*AGAINST_OTHERS, *SPEED_UP], 7, 4),
    "tree-mlp": Question("mlp", TREE, IN_PLACE, 15, 30),
    "tree-cnn": Question("cnn", TREE, IN_PLACE, 9, 8),
}


if __name__ == "__main__":
    for _ in ask(QUESTIONS):
        pass
