"""Which kernel multiplies a Linear's matrices fastest? `python benchmarks/linear/run.py`.

One thread, float32, GF/s of the three products of a Linear with weight (out, in) and few rows:
forward x Wᵀ + b, input gradient g W, weight gradient gᵀ x; through the BLAS that torch calls, and
through oneDNN. Contenders take turns within each line.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from rounds import machine
from torch import Tensor

ROUNDS = 30


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def race(contenders: list[Callable[[], object]]) -> list[float]:
    """Median seconds of each contender."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(ROUNDS):
        for own, contender in zip(seconds, contenders, strict=True):
            began = time.perf_counter()
            contender()
            own.append(time.perf_counter() - began)
    return [statistics.median(own[3:]) for own in seconds]


def main() -> None:
    torch.set_num_threads(1)
    print(machine(), "\n")
    print("| rows | weight | forward BLAS | oneDNN | input gradient BLAS | oneDNN | weight gradient BLAS | oneDNN |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for rows in (8, 16, 32, 64, 128, 256):
        for out, into in ((1024, 784), (1024, 1024), (4096, 9216), (1024, 256)):
            x, weight, bias, g = (
                torch.randn(rows, into),
                torch.randn(out, into),
                torch.randn(out),
                torch.randn(rows, out),
            )
            place = torch.empty(out, into)
            found = race(
                [
                    lambda: F.linear(x, weight, bias),  # noqa: B023 - called within this turn of the loop
                    lambda: onednn(x, weight, bias),  # noqa: B023
                    lambda: torch.mm(g, weight),  # noqa: B023
                    lambda: onednn(g, weight.t()),  # noqa: B023
                    lambda: torch.mm(g.t(), x, out=place),  # noqa: B023
                    lambda: onednn(g.t(), x.t()),  # noqa: B023
                ]
            )
            speeds = " | ".join(f"{2 * rows * out * into / s / 1e9:.0f}" for s in found)
            print(f"| {rows} | {out} x {into} | {speeds} |")


if __name__ == "__main__":
    main()
