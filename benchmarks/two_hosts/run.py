"""Two hosts and a slow link between them: `python benchmarks/two_hosts/run.py [QUESTION ...]` prints tables.

The hosts are network namespaces (tests/hosts.py), so this needs root.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from rounds import Contender, Question, ask

from hosts import Hosts

SCRIPT = Path(__file__).with_name("contender.py")
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
        ["samestep data:2", "samestep serial:2", "samestep apart:2"],
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


class OnHosts(Contender):
    """One worker on each host.

    slowed    samestep, with half the CPU for the second host
    alone     samestep on the first host only
    plain     a bare loop there
    """

    ports = itertools.count(29_500)

    def __init__(self, name: str, model: str, hosts: Hosts) -> None:
        super().__init__(name, [name.split()[0], model, *name.split()[1:]])
        self.hosts = hosts

    def start(self) -> None:
        for name in ("ask", "answer"):
            os.mkfifo(self.folder / name)
        kind, model, *option = self.command
        part = "samestep" if kind in ("slowed", "alone") else kind
        command = [sys.executable, str(SCRIPT), part, model, *option, str(self.folder)]
        options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {"GLOO_SOCKET_IFNAME": "eth"}}
        if kind in ("plain", "alone"):
            self.workers = [self.hosts[0].popen(command, stdin=subprocess.DEVNULL)]
        else:
            cpu = [None, 0.5 if kind == "slowed" else None]
            self.workers = self.hosts.start_workers([1, 1], command, next(self.ports), **options, cpu=cpu)
        self.process = self.workers[0]
        self._answers = (self.folder / "answer").open()
        self._asks = (self.folder / "ask").open("w", buffering=1)
        assert self._answers.readline() == "ready\n", f"{self.name} did not come up"

    def stop(self) -> None:
        super().stop()
        for worker in self.workers[1:]:
            worker.kill()


def main() -> Iterator[object]:
    rate = os.environ.get("RATE", "1gbit")
    with Hosts(2, rate=rate) as hosts:
        print(f"rate {rate}")
        yield from ask(QUESTIONS, lambda name, model: OnHosts(name, model, hosts))


if __name__ == "__main__":
    for _ in main():
        pass
