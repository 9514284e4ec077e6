"""Does `auto` use unequal workers? `python run.py [GROUP ...]`, as root.

Two hosts of a worker each, the second one with a share of a core (control groups); `auto` measures both and picks.
Then the pick, equal shares, and one worker alone on either host take turns. Perfectly used workers have the sum of the
two single rates. A short run of the pick must have one worker's digest.

One JSON line in the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "regret"))

from groups import Group
from on_hosts import OnHosts, candidates_on
from rounds import Contender, machine, race, spread

from hosts import Host, Hosts

REGRET = Path(__file__).resolve().parents[1] / "regret"
GROUPS = {
    "cnn 2:1": Group("cnn", shards=6, rate="10gbit", cpu=0.5),
    "cnn 3:1": Group("cnn", shards=8, rate="10gbit", cpu=0.34),
    "resnet 2:1": Group("resnet", shards=6, rate="10gbit", cpu=0.5),
    "resnet 3:1": Group("resnet", shards=8, rate="10gbit", cpu=0.34),
    "gpt 2:1": Group("gpt", shards=6, rate="10gbit", cpu=0.5),
    "gpt 3:1": Group("gpt", shards=8, rate="10gbit", cpu=0.34),
}
STEPS = 6  # steps of the runs whose digests are compared


class Alone(Contender):
    """One worker on one host."""

    def __init__(self, name: str, command: list[str], host: Host, cpu: float | None) -> None:
        super().__init__(name, command)
        self.host, self.cpu = host, cpu

    def launch(self, command: list[str]) -> "subprocess.Popen[Any]":
        return self.host.popen(command, self.cpu, stdin=subprocess.DEVNULL)


def digest(group: Group, hosts: Hosts, plan: Path, workers: int) -> str:
    """Digest of a few steps, on both hosts or by one worker."""
    command = [str(Path(sys.executable).with_name("samestep")), "train", str(REGRET / "job.py"), "--quiet"]
    command += ["--set", f"model={group.model}", "--set", f"shards={group.shards}", "--steps", str(STEPS), "--json"]
    if workers == 1:
        found = hosts[0].popen([*command, "--workers", "1", "--plan", "data"], None, stdout=subprocess.PIPE)
        return json.loads(found.communicate(timeout=300)[0])["digest"]
    both = hosts.start_workers(
        [1, 1], [*command, "--plan", str(plan)], 29_599, env={"GLOO_SOCKET_IFNAME": "eth"}, cpu=[None, group.cpu],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    outputs = [one.communicate(timeout=300)[0] for one in both]
    return json.loads(outputs[0])["digest"]


def run(name: str, group: Group, rounds: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary, Hosts(2, rate=str(group.rate)) as hosts:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = temporary
        pick = candidates_on(hosts, group, folder)[0]
        equal, alone = folder / "equal.toml", folder / "alone.toml"
        plan = folder / "pick.toml"
        plan.write_text(pick["plan"])
        half = group.shards // 2
        for file, assign in ((equal, [half, half]), (alone, [group.shards])):
            lines = pick["plan"].splitlines()
            kept = [line for line in lines if line.startswith(("numerics", "transport"))]
            file.write_text("\n".join([*kept, f"assign = {assign}"]))

        def command(file: Path) -> list[str]:
            return [sys.executable, str(REGRET / "contender.py"), group.model, str(group.shards), str(file)]

        contenders = [
            OnHosts("auto", command(plan), hosts, group.cpu),
            OnHosts("equal", command(equal), hosts, group.cpu),
            Alone("fast", command(alone), hosts[0], None),
            Alone("slow", command(alone), hosts[1], group.cpu),
        ]
        race(contenders, rounds, steps)
        medians = {one.name: one.medians for one in contenders}
        ideal = [1 / (1 / f + 1 / s) for f, s in zip(medians["fast"], medians["slow"], strict=True)]
        of_ideal = {who: [i / t for i, t in zip(ideal, medians[who], strict=True)] for who in ("auto", "equal")}
        same = digest(group, hosts, plan, 2) == digest(group, hosts, plan, 1)
    print(f"{name}: {'one' if same else 'NOT one'} worker's digest", file=sys.stderr)
    for who, values in of_ideal.items():
        print(f"{name}: {who} {spread(values, lambda v: f'{v:.3f}')} of the ideal rate", file=sys.stderr)
    return {
        "group": name, "pick": pick["name"], "predicted": pick["seconds"],
        "seconds": {who: statistics.median(values) for who, values in medians.items()},
        "of_ideal": {who: statistics.median(values) for who, values in of_ideal.items()}, "same_bits": same,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    print(machine(), file=sys.stderr)
    print(json.dumps([run(name, GROUPS[name], asked.rounds, asked.steps) for name in asked.groups or GROUPS]))


if __name__ == "__main__":
    main()
