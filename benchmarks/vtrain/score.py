"""How good are the plans picked among vTrain's measured ones? `python benchmarks/vtrain/score.py FILE`

Calibrates on at most 30 rows, predicts all others, and prints one JSON line. Readable text goes to stderr.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # published

from measured import Row, anyhow, by_shape, groups, read
from model import Fitted, calibrated

from samestep.errors import Refused

CALIBRATION = 30


def regret(plans: Sequence[Row], fitted: Fitted) -> float:
    """How much slower the predicted best of `plans` was measured than the measured best, as a fraction."""
    return min(plans, key=fitted.seconds).seconds / min(row.seconds for row in plans) - 1


def score(rows: Sequence[Row], used: Sequence[Row], per_shape: bool = True) -> dict[str, float]:
    """Calibrated on `used`: regret over all groups of five plans and more, and over those that hold none of `used`;
    the error over all rows but `used`."""
    fitted = calibrated(used, per_shape)
    scored = groups(rows)
    touched = {row.group for row in used}
    regrets = [regret(plans, fitted) for plans in scored]
    untouched = [r for r, plans in zip(regrets, scored, strict=True) if plans[0].group not in touched]
    errors = [abs(fitted.seconds(row) / row.seconds - 1) for row in rows if row not in set(used)]
    return {
        "groups": len(scored),
        "mean_regret": _mean(regrets),
        "p90_regret": round(float(np.percentile(regrets, 90)), 4),
        "mape": _mean(errors),
        "calibration_rows": len(used),
        "groups_apart": len(untouched),
        "mean_regret_apart": _mean(untouched),
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if values else float("nan")


def spread(rows: Sequence[Row], choose: Callable[[Random], Sequence[Row]], times: int) -> list[float]:
    """Mean regrets of other calibrations, in increasing order."""
    return sorted(score(rows, choose(Random(seed)))["mean_regret"] for seed in range(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--spread", type=int, default=10, help="other calibrations of each kind, to compare with")
    arguments = parser.parse_args()
    try:
        rows = read(arguments.file)
        if not groups(rows):
            raise Refused(f"{arguments.file} has no group of five plans and more: there is nothing to pick from")
    except Refused as refused:
        sys.exit(f"score.py: {refused}")
    used = by_shape(rows, CALIBRATION)
    result: dict[str, object] = dict(score(rows, used))
    plain = score(rows, used, per_shape=False)
    print(f"without an efficiency per shape: {plain}", file=sys.stderr)
    if arguments.spread > 0:
        result["spread_by_shape"] = spread(rows, lambda random: by_shape(rows, CALIBRATION, random), arguments.spread)
        result["spread_any_rows"] = spread(rows, lambda random: anyhow(rows, CALIBRATION, random), arguments.spread)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
