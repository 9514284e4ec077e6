"""Are flipped bits found, and is the right worker named? `python benchmarks/audit/flips.py [--hosts 200]`, as root.

In each run one worker of two hosts flips one bit of its own memory, between an update and the next one: a random tensor
of the parameters, the optimizer state, the buffers or the frozen parameters; a random element, bit, step and worker.
Audits take place every 32 steps. Found: the run ends with a Disagreement. Right: it names the tensor, and the worker as
culprit.

`--hosts N`: N runs on two network namespaces, with real processes. `--threads N`: with threads that emulate two hosts.
`--processes N`: with processes of one host; there both workers write to one copy of the parameters, and naming that
memory counts as right. One JSON line each.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import samestep
from hosts import Hosts
from samestep.errors import TrainingFailed
from samestep.launch.run.launcher import Launcher

JOB = f"{Path(__file__).resolve().parents[2] / 'tests' / 'jobs' / 'flipping.py'}:job"
KINDS = ("parameter", "state", "buffer", "frozen")
STEPS, SIZE = 32, 128  # SIZE: height and width of the images


PORTS = count(29_900)


def one(rng: random.Random, number: int, where: str, stand: Any) -> dict[str, Any]:
    """stand: the hosts, or a launcher."""
    asked = {
        "kind": KINDS[number % len(KINDS)],
        "tensor": rng.randrange(1000),
        "worker": rng.randrange(2),
        "element": rng.randrange(10**6),
        "bit": rng.randrange(64),
        "at": rng.randrange(1, STEPS),
        "adam": bool(number // len(KINDS) % 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        settings = {**asked, "size": SIZE, "steps": STEPS, "said": str(said)}
        message = on_hosts(stand, settings) if where == "hosts" else launched(stand, settings, where)
        name = said.read_text()
    is_shared = where == "processes" and asked["kind"] == "parameter"
    whose = "in the memory of host 0" if is_shared else f"worker {asked['worker']}"
    step = re.search(r"audit (in|after) step (\d+)", message)
    return {
        **asked,
        "where": where,
        "name": name,
        "found": "Disagreement" in message,
        "tensor_right": name in message,
        "culprit_right": re.search(rf"culprit is {whose}\b", message) is not None,
        "by": "watch" if "no longer what it was" in message else "replay" if "steps since" in message else "audit",
        "steps_later": None if step is None else int(step[2]) - asked["at"],
        "message": message,
    }


def launched(launcher: Launcher, settings: dict[str, Any], where: str) -> str:
    hosts: dict[str, Any] = {"transport": "threads", "hosts": (1, 1)} if where == "threads" else {}
    try:
        samestep.train(JOB, settings=settings, plan="data", workers=2, rebalance="off", launcher=launcher, **hosts)
    except TrainingFailed as error:
        return str(error)
    return ""


def on_hosts(hosts: Hosts, settings: dict[str, Any]) -> str:
    command = [sys.executable, "-m", "samestep", "train", JOB, "--plan", "data", "--rebalance", "off", "--quiet"]
    command += [f"--set={name}={value}" for name, value in settings.items()]
    env = {"GLOO_SOCKET_IFNAME": "eth", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = hosts.start_workers(
        [1, 1], command, next(PORTS), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    texts = [worker.communicate(timeout=300)[1].decode() for worker in started]
    return " ".join(" ".join(texts).split())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng, counts = random.Random(asked.seed), Counter[str]()
    with ExitStack() as opened:
        launcher = opened.enter_context(Launcher())
        for where in ("hosts", "threads", "processes"):
            runs = getattr(asked, where)
            stand = opened.enter_context(Hosts(2, rate="10gbit")) if runs and where == "hosts" else launcher
            for number in range(runs):
                line = one(rng, number, where, stand)
                print(json.dumps(line), flush=True)
                counts.update([where, *(f"{where} {key}" for key in line if line[key] is True and key != "adam")])
                counts.update([f"{where} {line['by']}"] if line["found"] else [])
    print(json.dumps(dict(sorted(counts.items()))), file=sys.stderr)


if __name__ == "__main__":
    main()
