"""How long does planning take after the profile? `python benchmarks/planning_time/search.py [--most WORKERS]`.

The whole search: candidates of every kind, each simulated. Prints a line after each size, and one JSON line at the end.
"""

import argparse
import json
import random
import statistics
import time

from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster, Link
from samestep.plan.machine import Host
from samestep.planner.cost.chain import Chain, SliceableRegion, Unit
from samestep.planner.cost.roofline import roofline_costs
from samestep.planner.search.search import PlanningProblem, SearchSpace, search

PER_HOST = 8
SIZES = [  # layers, workers, shards, different pairs of layers that may be sliced
    (60, 8, 8, 0),
    (60, 8, 8, 1),
    (60, 8, 8, 3),
    (60, 8, 8, 30),
    (60, 64, 64, 0),
    (60, 1024, 1024, 0),
    (1000, 1024, 8, 0),
    (1000, 1024, 64, 0),
    (1000, 1024, 1024, 0),
]


def chain(layers: int, shards: int, pairs: int) -> Chain:
    """Layers of very different sizes, the same at every call.

    Every two layers form a pair that can be sliced, and `pairs` of the pairs are different; 0 means that all are, and
    none is sliced.
    """

    def unit(number: int) -> Unit:
        draw = random.Random(number % (2 * pairs) if pairs else number)
        weights, crossing = draw.randint(10**4, 10**7), draw.randint(10**4, 10**6)
        cut = crossing if number else 0
        return Unit(f"l{number}", f"{weights}", 4 * weights, 2, cut, cut, 2 * crossing, crossing, 64.0 * weights)

    units = tuple(map(unit, range(layers)))
    regions = tuple(region(units, first) for first in range(0, layers - 1, 2))
    return Chain(units, regions, {}, None, shards, 64 * shards, 1.0, True)


def region(units: tuple[Unit, ...], first: int) -> SliceableRegion:
    a, b = units[first : first + 2]
    nbytes = a.parameters + b.parameters
    return SliceableRegion((a.name, b.name), (first, first + 1), 4, nbytes, a.makes, b.makes, True, first > 0)


def cluster(workers: int) -> Cluster:
    hosts = tuple(Host(f"n{i}", 8, min(PER_HOST, workers), 64 * 10**9, (), 40e9, 20e9) for i in range(-(-workers // 8)))
    return Cluster(hosts, Link(1e-5, 5e9), Link(5e-5, 1.25e9))


def measured(layers: int, workers: int, shards: int, pairs: int) -> dict[str, object]:
    """Search every number up to 8 workers, as `--plan auto` does; above 8, search this number alone."""
    net, there = chain(layers, shards, pairs), cluster(workers)
    costs, numerics = roofline_costs(net, there), Numerics(shards=shards)
    freedom = SearchSpace(tuple(range(1, workers + 1)) if workers <= PER_HOST else (workers,), may_slice=pairs > 0)
    laps = []
    for _ in range(3 if workers <= PER_HOST else 1):
        began = time.perf_counter()
        found = search(PlanningProblem(net, costs, there, numerics), freedom)
        laps.append(time.perf_counter() - began)
    seconds = round(statistics.median(laps), 3)
    row: dict[str, object] = {"layers": layers, "workers": workers, "shards": shards, "pairs": pairs}
    row |= {"seconds": seconds, "candidates": len(found), "best": found[0].kind}
    print(*row.values(), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=1024, help="leave out sizes with more workers")
    most = parser.parse_args().most
    print("layers workers shards pairs seconds candidates best")
    print(json.dumps({"sizes": [measured(*size) for size in SIZES if size[1] <= most]}))


if __name__ == "__main__":
    main()
