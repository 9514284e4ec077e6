"""Two hosts and a slow link between them: `python benchmarks/two_hosts/run.py [QUESTION ...]` prints tables.

The hosts are network namespaces (tests/hosts.py), so this needs root.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from rounds import Question, ask
from run_on_hosts import OnHosts

from hosts import Hosts

ALEXNET, MLP, GPT, TIED = (
    "samestep hybrid:2",
    "samestep sliced@0,2:2",
    "samestep U@norm:4",
    "samestep U@blocks.0,norm:4",
)

QUESTIONS = {
    "alexnet": Question("alexnet-32", [ALEXNET, "ddp 1", "plain 1"], [(ALEXNET, "ddp 1"), ("plain 1", ALEXNET)], 7, 3),
    "mlp": Question("mlp", [MLP, "ddp 1"], [(MLP, "ddp 1")], 9, 20),
    "gpt-untied": Question("gpt-32k", [GPT, "ddp 1"], [(GPT, "ddp 1")], 5, 2),
    "gpt-tied": Question("gpt-32k-tied", [TIED, "ddp 1"], [(TIED, "ddp 1")], 5, 2),
    "gpt-untied-ways": Question(
        "gpt-32k",
        [
            "samestep sliced@tokens:2",
            "samestep sliced@tokens:2:bfloat16@0",
            "samestep data:2:int8@0",
            "ddp 1",
            "plain 1",
        ],
        [("samestep sliced@tokens:2", "ddp 1"), ("samestep data:2:int8@0", "ddp 1")],
        4,
        1,
    ),
    "gpt-tied-ways": Question(
        "gpt-32k-tied",
        ["samestep data:2", "samestep data:2:int8@0", "ddp 1", "plain 1"],
        [("samestep data:2", "ddp 1"), ("samestep data:2:int8@0", "ddp 1")],
        4,
        1,
    ),
    "uneven-gpt": Question(
        "gpt-deep-32",
        ["slowed data/4,2:6", "slowed data/3,3:6", "alone data:6", "plain 1"],
        [("alone data:6", "slowed data/4,2:6")],
        4,
        2,
    ),
    "hidden": Question(
        "cnn-wide",
        ["samestep data:2", "samestep serial:2", "samestep unsent:2"],
        [("samestep data:2", "samestep serial:2")],
        9,
        6,
    ),
    "uneven": Question(
        "cnn",
        ["slowed data/4,2:6", "slowed data/3,3:6", "samestep data/4,2:6", "alone data:6"],
        [("alone data:6", "slowed data/4,2:6")],
        7,
        10,
    ),
}


def main() -> Iterator[object]:
    rate = os.environ.get("RATE", "1gbit")
    with Hosts(2, rate=rate) as hosts:
        print(f"rate {rate}")
        yield from ask(QUESTIONS, lambda name, model: OnHosts(name, model, hosts))


if __name__ == "__main__":
    for _ in main():
        pass
