"""Train every model of the zoo under every plan and compare: `python tests/models/run.py [--only NAME ...]`.

Prints a table; --json writes the outcomes. Exit status 1 if a plan differs in silence, or raises what is not ours.
"""

import argparse
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "src")]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from models.catalogue import KIND, missing, names, specimen  # noqa: E402
from models.outcome_of import PLANS, Outcome, Rounding, judged, worst_of  # noqa: E402
from models.specimen import drops  # noqa: E402
from models.warm_launcher import warm_launcher  # noqa: E402

FAILURES = ("wrong", "raised", "no model")
SIGNS = {
    "ok": "✓",
    "refused": "refused",
    "refused late": "refused late",
    "wrong": "WRONG",
    "raised": "RAISED",
    "no model": "NO MODEL",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of names")
    parser.add_argument("--json", type=Path, help="where the outcomes go")
    parser.add_argument("--report", type=Path, help="where a line for each model and plan goes, as soon as it is known")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = names(tuple(arguments.only))
    here = [name for name in chosen if missing(name) is None]
    outcomes: list[Outcome] = []
    with warm_launcher(here) as launcher:
        for name in here:
            began = time.monotonic()
            try:
                one = specimen(name)
                found = judged(launcher, name, Rounding.of(one.job()), drops=drops(one.made()))
            except Exception as error:  # noqa: BLE001 - a model that does not train in plain torch is none
                found = [Outcome(name, "plain", "no model", f"{type(error).__name__}: {error}", traceback.format_exc())]
            outcomes += found
            lines = [line_of(outcome) for outcome in found]
            print(
                f"{name}: {' '.join(SIGNS[o.kind] for o in found)}  {time.monotonic() - began:.1f} s",
                file=sys.stderr,
                flush=True,
            )
            if arguments.report is not None:
                with arguments.report.open("a") as file:
                    file.write("\n".join(lines) + "\n")
            if arguments.json is not None:
                arguments.json.write_text(json.dumps([outcome.as_json() for outcome in outcomes], indent=1))
    show(outcomes, [name for name in chosen if name not in here])
    return int(any(outcome.kind in FAILURES for outcome in outcomes))


def line_of(outcome: Outcome) -> str:
    trace = ""
    if outcome.traceback:
        last = outcome.traceback.strip().splitlines()
        trace = " | " + " / ".join(line.strip() for line in last[-5:])
    return f"{outcome.model} | {outcome.plan} | {outcome.kind} | {outcome.text}{trace}"


def show(outcomes: Sequence[Outcome], skipped: Sequence[str]) -> None:
    table = Table("model", "library", *(f"{plan} {workers}" for plan in PLANS for workers in (1, 2)))
    by_model: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_model.setdefault(outcome.model, {})[outcome.plan] = outcome
    for name, found in by_model.items():
        cells = [
            SIGNS[found[where].kind] if (where := f"{plan} {w}") in found else "" for plan in PLANS for w in (1, 2)
        ]
        table.add_row(name, KIND[name], *cells)
    console = Console(width=120)
    console.print(table)
    for plan in PLANS:
        worst = Counter(
            worst_of(o.kind for where, o in found.items() if where.startswith(plan)) for found in by_model.values()
        )
        console.print(f"{plan}: " + ", ".join(f"{count} {kind}" for kind, count in worst.most_common()))
    if skipped:
        console.print(f"skipped, for want of their library: {', '.join(skipped)}")


if __name__ == "__main__":
    sys.exit(main())
