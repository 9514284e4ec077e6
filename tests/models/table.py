"""The outcomes of the zoo as a table: `python tests/models/table.py OUTCOMES.json ... > table.md`. Later files win."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "src")]

from models.catalogue import LIBRARIES  # noqa: E402
from models.outcome_of import PLANS, worst_of  # noqa: E402

LONGEST = 160  # characters of a sentence


def read(files: Iterable[str]) -> dict[str, dict[str, Mapping[str, str]]]:
    """Outcomes by model and plan."""
    found: dict[str, dict[str, Mapping[str, str]]] = {}
    for file in files:
        rows = json.loads(Path(file).read_text())
        for name in {row["model"] for row in rows}:
            found[name] = {row["plan"]: row for row in rows if row["model"] == name}
    return found


def main() -> None:
    found = read(sys.argv[1:])
    print("| model | data | pipeline | slices | what is said |\n|---|---|---|---|---|")
    counts: dict[str, Counter[str]] = {plan: Counter() for plan in PLANS}
    for library, models in LIBRARIES.items():
        print(f"| **{library}** | | | | |")
        for name in models:
            outcomes = found.get(name, {})
            kinds = {
                plan: worst_of(row["kind"] for key, row in outcomes.items() if key.startswith(plan)) for plan in PLANS
            }
            for plan, kind in kinds.items():
                counts[plan][kind] += 1
            said = [
                f"{key}: {shortened(row['text'])}"
                for key, row in outcomes.items()
                if row["kind"] != "ok" and key.endswith("2")
            ]
            print(f"| {name} | {' | '.join(kinds.values())} | {'; '.join(dict.fromkeys(said)) if said else ''} |")
    for plan, kinds_of in counts.items():
        print(f"\n{plan}: {', '.join(f'{count} {kind}' for kind, count in kinds_of.most_common())}")


def shortened(text: str) -> str:
    line = re.sub(r"(\w+)\.py:(\d+)", r"\1, line \2", re.sub(r"\s+", " ", text).replace("|", "/"))
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


if __name__ == "__main__":
    main()
