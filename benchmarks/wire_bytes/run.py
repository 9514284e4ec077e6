"""Bytes of a step on the wire: `python benchmarks/wire_bytes/run.py` prints a table. Needs root, for namespaces.

Counted by the two hosts' interfaces (tx_bytes), predicted by the plan.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "two_hosts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from rounds import WARM
from run_on_hosts import OnHosts

from hosts import Hosts

STEPS = 8
COUNTED = [
    ("mlp", "data:2"),
    ("mlp", "sliced@0,2:2"),
    ("cnn-wide", "data:2"),
    ("alexnet-32", "data:2"),
    ("alexnet-32", "hybrid:2"),
    ("gpt-32k", "data:2"),
    ("gpt-32k", "data:2:int8@0"),
    ("gpt-32k", "sliced@tokens:2"),
    ("gpt-32k", "U@norm:4"),
    ("gpt-32k-tied", "data:2"),
]


def counted(hosts: Hosts, model: str, option: str) -> tuple[float, dict[str, int]]:
    """Bytes per step that both hosts sent, and the plan's prediction, by cause."""
    contender = OnHosts(f"counted {option}", model, hosts)
    contender.start()
    try:
        contender.answer(1)
        before = sum(host.sent() for host in hosts)
        contender.answer(STEPS)
        found = sum(host.sent() for host in hosts) - before
        path = contender.folder / "predicted"
        predicted = json.loads(path.read_text())
        path.unlink()
    finally:
        contender.stop()
    return found / (STEPS + WARM), predicted


def main() -> None:
    print("| model | plan | plan says | counted | counted / said |\n|---|---|---|---|---|")
    for model, option in COUNTED:
        with Hosts(2, rate="1gbit") as hosts:
            found, predicted = counted(hosts, model, option)
        said = sum(predicted.values())
        print(f"| {model} | {option} | {said:,} | {found:,.0f} | {found / said:.4f} |", flush=True)


if __name__ == "__main__":
    main()
