"""Are flipped bits found, and is the right worker named? `python benchmarks/audit/flips.py [--flips 200]`.

In each run one worker of two hosts flips one bit of its own memory, between an update and the next one: a random tensor
of the parameters, the optimizer state, the buffers or what is frozen; a random element, bit, step and worker. Audits
are held every 32 steps. Found: the run ends with a Disagreement. Right: it names the tensor, and the worker as culprit.

Threads pretend to be hosts; with `--processes N`, N more runs are on one host with real processes. There
the parameters are one copy that both workers write to: right is then to name that memory. One JSON line each.
"""

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import samestep
from samestep.errors import TrainingFailed
from samestep.launch.launcher import Launcher

JOB = f"{Path(__file__).resolve().parents[2] / 'tests' / 'jobs' / 'flipping.py'}:job"
KINDS = ("parameter", "state", "buffer", "frozen")
STEPS, SIZE = 32, 128  # SIZE: of the pictures


def one(launcher: Launcher, rng: random.Random, number: int, *, processes: bool) -> dict[str, Any]:
    asked = {
        "kind": KINDS[number % len(KINDS)],
        "tensor": rng.randrange(1000),
        "worker": rng.randrange(2),
        "element": rng.randrange(10**6),
        "bit": rng.randrange(64),
        "at": rng.randrange(1, STEPS),
        "adam": bool(number // len(KINDS) % 2),
    }
    hosts: dict[str, Any] = {} if processes else {"transport": "threads", "hosts": (1, 1)}
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        try:
            samestep.train(
                JOB, settings={**asked, "size": SIZE, "steps": STEPS, "said": str(said)}, plan="data", workers=2,
                rebalance="off", launcher=launcher, **hosts,
            )  # fmt: skip
            message = ""
        except TrainingFailed as error:
            message = str(error)
        name = said.read_text()
    is_shared = processes and asked["kind"] == "parameter"
    whose = "in the memory of host 0" if is_shared else f"worker {asked['worker']}"
    step = re.search(r"audit (in|after) step (\d+)", message)
    return {
        **asked,
        "processes": processes,
        "name": name,
        "found": "Disagreement" in message,
        "tensor_right": name in message,
        "culprit_right": f"culprit is {whose}" in message,
        "steps_later": None if step is None else int(step[2]) - asked["at"],
        "message": message,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng, counts = random.Random(asked.seed), Counter[str]()
    with Launcher() as launcher:
        for number in range(asked.flips + asked.processes):
            line = one(launcher, rng, number, processes=number >= asked.flips)
            print(json.dumps(line), flush=True)
            where = "processes" if line["processes"] else "threads"
            counts.update([where, *(f"{where} {key}" for key in line if line[key] is True and key != "processes")])
    print(json.dumps(dict(sorted(counts.items()))), file=sys.stderr)


if __name__ == "__main__":
    main()
