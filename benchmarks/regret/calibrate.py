"""How wide must intervals be, and how many runs are inside? `python calibrate.py [RESULTS]`, after `run.py`.

Half of an interval is the root of m^2 + u^2: u is the variation in the profile, m belongs to the kind of plan. m is
fitted so that nine of ten runs are inside. The share inside is counted on runs that it was not fitted to: one model,
one place (number of workers and link) or one kind of plan is left out in turn. A kind that was left out gets the widest
of the others.

One JSON line in the end: `model` goes into `planner/cost/confidence.py`.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from groups import GROUPS

from samestep.planner.cost.confidence import MODEL

HELD = 0.9


@dataclass(frozen=True)
class Seen:
    """One plan, predicted and measured."""

    model: str
    place: str
    kind: str
    predicted: float
    measured: float
    unrest: float

    @property
    def off(self) -> float:
        """Error of the prediction, relative to the predicted time."""
        return abs(self.measured / self.predicted - 1)


def seen(path: Path) -> list[Seen]:
    found = []
    for line in path.read_text().splitlines():
        result = json.loads(line)
        group = GROUPS[result["group"]]
        place = "one host" if group.rate is None else f"two hosts, {group.rate}, {group.cpu or 1}"
        for plan in result["plans"]:
            half = (plan["high"] - plan["low"]) / 2 / plan["predicted"]
            unrest = max(0.0, half**2 - result["model_error"][plan["kind"]] ** 2) ** 0.5
            found.append(Seen(group.model, place, plan["kind"], plan["predicted"], plan["measured"], unrest))
    return found


def fitted(rows: Iterable[Seen]) -> dict[str, float]:
    """m by kind: the quantile of the error that the variation does not explain."""
    needed: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        needed[row.kind].append(max(0.0, row.off**2 - row.unrest**2) ** 0.5)
    return {kind: float(np.quantile(values, HELD)) for kind, values in needed.items()}


def inside(row: Seen, model: dict[str, float]) -> bool:
    m = model.get(row.kind, max(model.values()))
    return row.off <= (m**2 + row.unrest**2) ** 0.5


def left_out(rows: list[Seen], of: Callable[[Seen], str]) -> dict[str, float]:
    """Share of runs inside, by the group that was left out."""
    found = {}
    for name in sorted({of(row) for row in rows}):
        model = fitted(row for row in rows if of(row) != name)
        found[name] = statistics.fmean(inside(row, model) for row in rows if of(row) == name)
    return found


def main(path: str = str(Path(__file__).with_name("results.jsonl"))) -> None:
    rows = seen(Path(path))
    model = fitted(rows)
    print("| kind | predictions | median error | 90th percentile | m | today |\n|---|--:|--:|--:|--:|--:|")
    for kind, m in model.items():
        off = [row.off for row in rows if row.kind == kind]
        numbers = f"{statistics.median(off):.1%} | {np.quantile(off, 0.9):.1%} | {m:.3f} | {MODEL[kind]:.3f}"
        print(f"| {kind} | {len(off)} | {numbers} |")
    held = {}
    for what, of in (("model", lambda r: r.model), ("place", lambda r: r.place), ("kind", lambda r: r.kind)):
        found = left_out(rows, of)
        held[what] = sum(found[of(row)] for row in rows) / len(rows)
        print(f"\nleft out by {what}: " + ", ".join(f"{name} {share:.0%}" for name, share in found.items()))
    print(json.dumps({"predictions": len(rows), "inside_left_out": held, "model": model}))


if __name__ == "__main__":
    main(*sys.argv[1:])
