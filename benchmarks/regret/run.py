"""How good are the planner's picks and predictions? `python run.py [GROUP ...]`

For every group: the planner predicts (written down with the commit, before anything is measured), then all plans
take turns, the pick twice. One JSON line per group goes to results.jsonl, and one in the end to stdout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
from groups import GROUPS, Group
from on_hosts import OnHosts, candidates_on
from rounds import Contender, machine, race

from hosts import Hosts
from models import MODELS
from samestep.bench.contestants import sensible
from samestep.errors import SamestepError
from samestep.launch.environment import mkl_mode, physical_cores
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher
from samestep.planner.cost.confidence import MODEL

HERE = Path(__file__).resolve().parent
TURN = 0.6  # seconds of a turn, about


def predict(group: Group, hosts: Hosts | None, folder: Path) -> list[dict[str, Any]]:
    """Candidates of the planner, its pick first."""
    if hosts is not None:
        return candidates_on(hosts, group, folder)
    with Launcher() as launcher:
        return launcher.candidates(
            Request.of(
                run=uuid.uuid4().hex[:12], file=str(HERE / "job.py"), slices=group.slices, threads=group.threads,
                settings={"model": group.model, "shards": group.shards}, default_workers=cores(group),
                plan_is_asked=True, folder=str(Path.cwd()), path=tuple(sys.path), mkl=mkl_mode(),
            )
        )  # fmt: skip


def cores(group: Group) -> int:
    """Plans with several threads may use as many workers, too; they are expected to lose."""
    return physical_cores() * group.threads


def measure(
    group: Group, found: list[dict[str, Any]], hosts: Hosts | None, folder: Path, rounds: int
) -> dict[str, list[float]]:
    """Medians per round of every plan, and of the second copy of the pick under "again"."""
    contenders = []
    for number, one in enumerate([*found, found[0]]):
        plan = folder / f"plan-{number}.toml"
        plan.write_text(one["plan"])
        command = [sys.executable, str(HERE / "contender.py"), group.model, str(group.shards), str(plan)]
        name = one["name"] if number < len(found) else "again"
        contenders.append(Contender(name, command) if hosts is None else OnHosts(name, command, hosts, group.cpu))
    steps = max(2, min(60, round(TURN / found[0]["seconds"])))
    race(contenders, rounds, steps)
    return {one.name: one.medians for one in contenders}


def judged(name: str, found: list[dict[str, Any]], medians: dict[str, list[float]]) -> dict[str, Any]:
    measured = {plan: statistics.median(values) for plan, values in medians.items()}
    again = measured.pop("again")
    pick = found[0]["name"]
    best = min(measured, key=measured.__getitem__)
    noise = abs(statistics.median(b / a for a, b in zip(medians[pick], medians["again"], strict=True)) - 1)
    raw = min(measured[pick], again) / min(measured[best], again) - 1
    ratio = statistics.median(a / b for a, b in zip(medians[pick], medians[best], strict=True)) - 1
    plans = [
        {
            "name": one["name"],
            "kind": one["kind"],
            "predicted": one["seconds"],
            "low": one["low"],
            "high": one["high"],
            "measured": measured[one["name"]],
            "error": one["seconds"] / measured[one["name"]] - 1,
        }
        for one in found
    ]
    return {
        "group": name, "pick": pick, "best": best, "best_kind": next(o["kind"] for o in found if o["name"] == best),
        "regret": 0.0 if ratio <= noise else max(0.0, ratio), "raw_regret": max(0.0, raw), "noise": noise,
        "plans": plans,
    }  # fmt: skip


def run(name: str, group: Group, rounds: int, commit: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = temporary  # a profile of its own, minutes old: the machine's speed drifts
        hosts = None if group.rate is None else Hosts(2, rate=group.rate).__enter__()
        try:
            found = [dict(one) for one in sensible(predict(group, hosts, folder))]
            with (HERE / "predictions.jsonl").open("a") as log:
                candidates = [{k: one[k] for k in ("name", "kind", "seconds", "low", "high", "parts")} for one in found]
                print(json.dumps({"commit": commit, "group": name, "candidates": candidates}), file=log)
            return judged(name, found, measure(group, found, hosts, folder, rounds)) | {
                "commit": commit, "model_error": dict(MODEL)
            }  # fmt: skip
        finally:
            if hosts is not None:
                hosts.__exit__(None, None, None)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    regrets = [r["regret"] for r in results]
    errors = [abs(p["error"]) for r in results for p in r["plans"]]
    inside = [p["low"] <= p["measured"] <= p["high"] for r in results for p in r["plans"]]
    return {
        "groups": len(results),
        "winners": sorted({r["best_kind"] for r in results}),
        "mean_regret": statistics.fmean(regrets),
        "p95_regret": float(np.quantile(regrets, 0.95)),
        "predictions": len(errors),
        "median_error": statistics.median(errors),
        "p90_error": float(np.quantile(errors, 0.9)),
        "inside": statistics.fmean(inside),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    print(machine(), file=sys.stderr)
    results = []
    for name in asked.groups or GROUPS:
        assert GROUPS[name].model in MODELS
        try:
            results.append(run(name, GROUPS[name], asked.rounds, commit.stdout.strip()))
        except (AssertionError, SamestepError) as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
            continue
        with (HERE / "results.jsonl").open("a") as log:
            print(json.dumps(results[-1]), file=log)
        found = results[-1]
        print(f"{name}: pick {found['pick']}, best {found['best']}, regret {found['regret']:.1%}", file=sys.stderr)
        for plan in found["plans"]:
            times = f"predicted {plan['predicted'] * 1e3:8.2f}  measured {plan['measured'] * 1e3:8.2f}"
            print(f"    {plan['name']:40} {times}  {plan['error']:+.1%}", file=sys.stderr)
    print(json.dumps(summary(results)))


if __name__ == "__main__":
    main()
