"""Korthikanti's eight iteration times from model sizes: `python benchmarks/korthikanti/score.py` prints them, and one
JSON line.

Two efficiencies are fitted, of the arithmetic and of the memory; each row is predicted by a fit to the seven others.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from published.analytic import Device
from published.calibration import fit
from published.collectives import Link
from published.transformer import Slicing, Transformer
from published.transformer_time import Spread, layer_time, step_seconds

PEAK, MEMORY, NVLINK = 312e12, 2.039e12, 300e9  # A100-80GB's data sheet: FLOP/s, bytes/s, bytes/s each way
START = (0.6, 0.6)


@dataclass(frozen=True)
class Row:
    """A measured iteration. Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models",
    tables 3 and 5: A100-80GB, 8 to a node, half precision, no data parallelism, the words of Megatron (51,200)."""

    name: str
    model: Transformer
    stages: int
    chunks: int
    batch: int
    rows: int  # rows of a microbatch
    slicing: Slicing
    seconds: float


FULL = Slicing(8, recompute="full")
SELECTIVE = Slicing(8, sequence=True, recompute="selective")
MODELS = [
    ("22B", Transformer(6144, 48, 64, 2048), 1, 1, 4, 4, 1.42, 1.10),
    ("175B", Transformer(12288, 96, 96, 2048), 8, 3, 64, 1, 18.13, 13.75),
    ("530B", Transformer(20480, 105, 128, 2048), 35, 3, 280, 1, 49.05, 37.83),
    ("1T", Transformer(25600, 128, 160, 2048), 64, 1, 512, 1, 94.42, 71.49),
]
PUBLISHED = [
    Row(name, model, stages, chunks, batch, rows, slicing, seconds)
    for name, model, stages, chunks, batch, rows, full, selective in MODELS
    for slicing, seconds in ((FULL, full), (SELECTIVE, selective))
]


def predict(efficiencies: Sequence[float], row: Row) -> float:
    """Seconds of an iteration; `efficiencies` of arithmetic and memory are fractions of the data sheet's rates."""
    arithmetic, memory = (min(1.0, float(e)) for e in efficiencies)
    device, link = Device(PEAK, memory * MEMORY, arithmetic), Link(0.0, NVLINK)
    spread = Spread(row.rows, row.batch // row.rows, row.slicing, 1, row.stages, row.chunks)
    return step_seconds(row.model, spread, device, link, layer_time(row.model, spread, device, link))


def calibrated(rows: Sequence[Row]) -> tuple[float, float]:
    arithmetic, memory = fit(predict, START, rows, [row.seconds for row in rows]).tolist()
    return arithmetic, memory


def left_out(rows: Sequence[Row]) -> list[float]:
    """Predicted seconds of each row, by a fit to the other rows."""
    return [predict(calibrated([other for other in rows if other is not row]), row) for row in rows]


def main() -> None:
    predicted = left_out(PUBLISHED)
    errors = [seconds / row.seconds - 1 for row, seconds in zip(PUBLISHED, predicted, strict=True)]
    print("model  recompute  published  predicted  error", file=sys.stderr)
    for row, seconds, error in zip(PUBLISHED, predicted, errors, strict=True):
        print(
            f"{row.name:5}  {row.slicing.recompute:9} {row.seconds:9.2f} s {seconds:8.2f} s {error:+6.1%}",
            file=sys.stderr,
        )
    result = {
        "rows": len(PUBLISHED),
        "mean_error": round(float(np.mean(np.abs(errors))), 4),
        "greatest_error": round(float(np.max(np.abs(errors))), 4),
        "efficiencies": [round(e, 3) for e in calibrated(PUBLISHED)],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
