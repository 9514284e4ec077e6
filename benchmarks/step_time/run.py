"""How long is a step? `python benchmarks/step_time/run.py [QUESTION ...]` prints tables in Markdown."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import Contender, machine, race, ratios, spread

HERE = Path(__file__).resolve().parent


def contender(kind: str, model: str, option: str) -> Contender:
    name = f"{kind} {option}"
    return Contender(name, [sys.executable, str(HERE / "contender.py"), kind, model, option])


QUESTIONS = {
    # question: model, contenders, rounds, steps per round
    "mlp": ("mlp", ["samestep 2:2", "ddp 2", "plain 1", "plain 2", "samestep 1:1"], 15, 40),
    "alexnet": ("alexnet", ["samestep 2:2", "ddp 2", "plain 1", "plain 2"], 9, 6),
    "cnn": ("cnn", ["samestep 2:2", "ddp 2", "plain 2", "samestep 1:2", "samestep 1:1", "plain 1"], 9, 8),
    "gpt": ("gpt", ["samestep 2:2", "ddp 2", "plain 2", "samestep 1:2", "samestep 1:1", "plain 1"], 7, 4),
    "tree-mlp": ("mlp", ["samestep 2:8", "samestep 2:8:in-place"], 15, 30),
    "tree-cnn": ("cnn", ["samestep 2:8", "samestep 2:8:in-place"], 9, 8),
}
AGAINST_OTHERS = [("samestep 2:2", other) for other in ("ddp 2", "plain 1", "plain 2")]
SPEED_UP = [("samestep 1:2", "samestep 2:2"), ("samestep 1:1", "samestep 2:2"), ("samestep 1:1", "plain 1")]
IN_PLACE = [("samestep 2:8", "samestep 2:8:in-place")]
PAIRS = {
    "mlp": [*AGAINST_OTHERS, SPEED_UP[-1]],
    "alexnet": AGAINST_OTHERS,
    "cnn": [*AGAINST_OTHERS, *SPEED_UP],
    "gpt": [*AGAINST_OTHERS, *SPEED_UP],
    "tree-mlp": IN_PLACE,
    "tree-cnn": IN_PLACE,
}


def main(questions: list[str]) -> None:
    print(machine(), "\n")
    for question in questions or list(QUESTIONS):
        model, names, rounds, steps = QUESTIONS[question]
        found = {}
        for name in names:
            kind, option = name.split()
            found[name] = contender(kind, model, option)
        race(list(found.values()), rounds, steps)
        print(f"**{question}**, {rounds} rounds of {steps} steps\n\n| contender | step, ms |\n|---|--:|")
        for name, one in found.items():
            print(f"| {name} | {spread(one.medians, lambda s: f'{s * 1e3:.2f}')} |")
        print("\n| ratio | per round |\n|---|--:|")
        for a, b in PAIRS[question]:
            print(f"| {a} / {b} | {spread(ratios(found[a], found[b]), lambda r: f'{r:.3f}')} |")
        print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
