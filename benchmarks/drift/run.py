"""Is a worker that gets slower noticed, and what is its help still worth? `python run.py [MODEL ...]`, as root.

Two workers of one host; before step 50 the second one gets a third of a core (control group). Each round runs, in
turn: with shards dealt anew, with `--rebalance off`, and one worker alone, which is slowed at step 50 too: its rate
before and after gives the ideal one, the sum of what the two workers have alone. Digests must be one worker's.

One JSON line in the end.
"""

import argparse
import json
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import machine

import samestep
from hosts import cpu_groups
from samestep.launch.launcher import Launcher
from samestep.report import Report

JOB = f"{Path(__file__).resolve().parent / 'job.py'}:job"
SHARE, PERIOD = 1 / 3, 20_000  # of a core; us
AT, STEPS = 50, 150
SETTLED = 20  # steps after the change from which on the rate counts


def run(launcher: Launcher, model: str, group: Path, folder: Path, **options: Any) -> tuple[Report, list[float]]:
    """The report, and the seconds of every step but the first."""
    times = folder / "times.json"
    settings = {"model": model, "times": str(times), "group": str(group), "at": AT, "steps": STEPS}
    report = samestep.train(JOB, settings=settings, plan="data", launcher=launcher, **options)
    ends = json.loads(times.read_text())
    return report, [b - a for a, b in pairwise(ends)]


def measured(launcher: Launcher, model: str, group: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, list[Any]] = {"anew": [], "off": [], "dealt": [], "assign": [], "same": []}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(rounds):
            one, alone = run(launcher, model, group, Path(name), workers=1)
            fast, slow = statistics.mean(alone[3 : AT - 1]), statistics.mean(alone[AT + SETTLED :])
            ideal = 1 / (1 / fast + 1 / slow)
            for what, asked in (("anew", None), ("off", "off")):
                report, steps = run(launcher, model, group, Path(name), workers=2, rebalance=asked)
                found[what].append(ideal / statistics.mean(steps[AT + SETTLED :]))
                found["same"].append(report.digest == one.digest)
                if what == "anew":
                    after = [deal for deal in report.deals if deal[0] > AT]
                    found["dealt"].append(after[0][0] if after else None)
                    found["assign"].append(after[-1][1] if after else None)
            print(model, {key: values[-1] for key, values in found.items()}, file=sys.stderr)
    return {
        "model": model, "of_ideal": statistics.median(found["anew"]), "off_of_ideal": statistics.median(found["off"]),
        "spread": [min(found["anew"]), max(found["anew"])], "dealt_at": found["dealt"], "assign": found["assign"],
        "same_bits": all(found["same"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["cnn", "mlp-1024", "resnet"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(machine(), file=sys.stderr)
    group = cpu_groups() / "samestep-drift"
    group.mkdir(exist_ok=True)
    try:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(int(SHARE * PERIOD)))
        with Launcher() as launcher:
            print(json.dumps([measured(launcher, model, group, asked.rounds) for model in asked.models]))
    finally:
        group.rmdir()


if __name__ == "__main__":
    main()
