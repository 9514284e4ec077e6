"""Is a worker that gets slower noticed, and how much does it still contribute? `python run.py [GROUP ...]`, as root.

Two workers of one host, or (GROUP "cnn, hosts") of two hosts, network namespaces with 10 Gbit/s between them; before
step 50 the second one gets a third of a core (control group). Each round runs, in turn: with rebalanced shards, with
`--rebalance off`, and one worker alone, which is slowed at step 50 too: its rate before and after gives the ideal one,
the sum of what the two workers have alone. Digests must be one worker's.

One JSON line in the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count, pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import machine

import samestep
from hosts import Hosts, cpu_groups
from job import slow_down
from samestep.launch.run.launcher import Launcher

PORTS = count(29_700)
JOB = f"{Path(__file__).resolve().parent / 'job.py'}:job"
SHARE, PERIOD = 1 / 3, 20_000  # share of a core; period in us
AT, STEPS = 50, 150
SETTLED = 20  # steps after the change before the rate counts


def run(launcher: Launcher, model: str, group: Path, folder: Path, **options: Any) -> tuple[Any, list[float]]:
    """The report's JSON object, with the seconds of every step except the first."""
    times = folder / "times.json"
    settings = {"model": model, "times": str(times), "group": str(group), "at": AT, "steps": STEPS}
    if options.pop("hosts", False):
        report = on_hosts(settings, folder / "other", options["rebalance"])
    else:
        report = samestep.train(JOB, settings=settings, plan="data", launcher=launcher, **options).as_json()
    ends = json.loads(times.read_text())
    return report, [b - a for a, b in pairwise(ends)]


def on_hosts(settings: dict[str, Any], other: Path, rebalance: str | None) -> Any:
    """A worker on each of two hosts."""
    command = [sys.executable, "-m", "samestep", "train", JOB, "--plan", "data", "--quiet", "--json"]
    command += [] if rebalance is None else ["--rebalance", rebalance]
    for name, value in {**settings, "other": str(other)}.items():
        command += ["--set", f"{name}={value}"]
    with Hosts(2, rate="10gbit") as hosts:
        env = {"GLOO_SOCKET_IFNAME": "eth", "PYTHONPATH": os.pathsep.join(sys.path)}
        workers = hosts.start_workers([1, 1], command, next(PORTS), env=env, stdout=subprocess.PIPE)
        while not other.exists() and all(worker.poll() is None for worker in workers):
            time.sleep(0.001)
        if other.exists():
            slow_down(workers[1].pid, Path(settings["group"]))
            other.unlink()
        outputs = [worker.communicate(timeout=900)[0] for worker in workers]
        return json.loads(outputs[0].splitlines()[-1])


def measured(launcher: Launcher, name: str, group: Path, rounds: int) -> dict[str, Any]:
    model, *where = name.split(", ")
    found: dict[str, list[Any]] = {"rebalanced": [], "off": [], "dealt": [], "assign": [], "same": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder, two = Path(temporary), {"hosts": True} if where else {"workers": 2}
        for _ in range(rounds):
            one, alone = run(launcher, model, group, folder, workers=1)
            fast, slow = statistics.mean(alone[3 : AT - 1]), statistics.mean(alone[AT + SETTLED :])
            ideal = 1 / (1 / fast + 1 / slow)
            for what, asked in (("rebalanced", None), ("off", "off")):
                report, steps = run(launcher, model, group, folder, rebalance=asked, **two)
                found[what].append(ideal / statistics.mean(steps[AT + SETTLED :]))
                found["same"].append(report["digest"] == one["digest"])
                if what == "rebalanced":
                    after = [deal for deal in report["deals"] if deal["step"] > AT]
                    found["dealt"].append(after[0]["step"] if after else None)
                    found["assign"].append(after[-1]["assign"] if after else None)
            print(name, {key: values[-1] for key, values in found.items()}, file=sys.stderr)
    return {
        "group": name, "of_ideal": statistics.median(found["rebalanced"]),
        "off_of_ideal": statistics.median(found["off"]),
        "spread": [min(found["rebalanced"]), max(found["rebalanced"])],
        "dealt_at": found["dealt"], "assign": found["assign"],
        "same_bits": all(found["same"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="*", default=["cnn", "mlp-1024", "resnet", "cnn, hosts", "resnet, hosts"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(machine(), file=sys.stderr)
    group = cpu_groups() / "samestep-drift"
    group.mkdir(exist_ok=True)
    try:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(int(SHARE * PERIOD)))
        with Launcher() as launcher:
            print(json.dumps([measured(launcher, name, group, asked.rounds) for name in asked.groups]))
    finally:
        group.rmdir()


if __name__ == "__main__":
    main()
