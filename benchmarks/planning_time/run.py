"""How long does it take to cut a chain of layers into stages? `python benchmarks/planning_time/run.py`.

Prints a line after each size, and one JSON line at the end.
"""

import argparse
import json
import math
import random
import statistics
import time

from samestep.planner.search.partition import partition
from samestep.planner.search.pipeline_costs import LayerCosts, WorkerRow, ring_all_reduce
from samestep.planner.search.stage_costs import NothingFits, Partition

MICROBATCHES = 64
BANDWIDTH, LATENCY = 1e10, 1e-5
ROOMY, TIGHT = 1e10, 3e9  # bytes per worker

SIZES = [  # layers, workers, memory, even speeds
    (24, 4, math.inf, True),
    (60, 8, math.inf, True),
    (60, 8, 5e10, True),
    (60, 8, 5e10, False),
    (60, 32, ROOMY, False),
    (200, 256, ROOMY, True),
    (1000, 1024, math.inf, True),
    (1000, 1024, ROOMY, True),
    (1000, 1024, TIGHT, True),
    (1000, 1024, ROOMY, False),
]


def chain(layers: int) -> LayerCosts:
    """Layers of very different sizes, the same at every call."""
    draw = random.Random(layers)

    def each(most: float) -> tuple[float, ...]:
        return tuple(draw.random() * most for _ in range(layers))

    return LayerCosts(each(0.01), each(0.02), each(1e8), each(4e8), each(1e8), each(1e7))


def row(workers: int, memory: float, even: bool) -> WorkerRow:
    equal = WorkerRow.equal(workers, BANDWIDTH, LATENCY, memory)
    speeds = equal.speeds if even else tuple(1.0 + rank % 3 for rank in range(workers))
    return WorkerRow(speeds, equal.memory, equal.bandwidths, equal.latencies)


def timed(layers: int, workers: int, memory: float, even: bool, rounds: int) -> tuple[float, Partition | NothingFits]:
    """Median seconds, and the partition found."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = partition(chain(layers), row(workers, memory, even), MICROBATCHES, ring_all_reduce(BANDWIDTH, LATENCY))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1024, help="leave out the sizes with more workers")
    most = parser.parse_args().most
    lines = []
    for layers, workers, memory, even in SIZES:
        if workers > most:
            continue
        seconds, found = timed(layers, workers, memory, even, 5 if workers <= 32 else 1)
        line = {
            "layers": layers,
            "workers": workers,
            "memory_bytes": memory if memory < math.inf else None,
            "equal": even,
            "seconds": round(seconds, 4),
            "stages": len(found.best.stages) if isinstance(found, Partition) else None,
            "exact": isinstance(found, Partition) and not found.pruned,
        }
        print(line, flush=True)
        lines.append(line)
    print(json.dumps({"benchmark": "planning_time", "sizes": lines}))


if __name__ == "__main__":
    main()
