"""Which stages are best under PipeDream's cost? `python benchmarks/pipedream/score.py FILE WORKERS`.

    stage    (compute + 4 (m-1) parameter bytes / (b m)) / m       on m workers
    cut      2 activation bytes / b                                each tensor once
    b        1.25e9 bytes/s

Narayanan et al., SOSP 2019, section 3.1. The search is the library's; this file has a reader and a cost.
Prints one JSON line. `step_seconds` is of the largest stage, as in PipeDream's published plans; `with_transfers` is the
best plan when the largest cut counts too.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from layer_graph import Cuts, Graph, Malformed, cuts, read

from samestep.planner.search.partition import best_partition
from samestep.planner.search.stage_costs import (
    Floats,
    Partition,
    Split,
    StageSpan,
)

BANDWIDTH = 1.25e9  # bytes/s


@dataclass(frozen=True)
class PipeDreamCosts:
    """Costs of stages between the cuts of a graph."""

    compute: Floats  # (cuts,) seconds of all nodes before each cut
    parameters: Floats  # (cuts,) bytes
    crossing_bytes: Floats  # (cuts,)
    no_stage: Floats  # (cuts, cuts) 0 where the second cut is after the first, else inf
    num_workers: int
    transfers: bool
    identical: bool = True
    deepest: int = 1

    @property
    def num_cuts(self) -> int:
        return len(self.compute) - 1

    def seconds(self, workers: range) -> Floats:
        m = len(workers)
        compute = self.compute[None, :] - self.compute[:, None]
        parameters = self.parameters[None, :] - self.parameters[:, None]
        return (compute + 4 * (m - 1) * parameters / (BANDWIDTH * m)) / m + self.no_stage

    def fullness(self, workers: range, to_end: int) -> Floats:
        return self.no_stage

    def crossing(self, worker: int) -> Floats:
        return 2 * self.crossing_bytes / BANDWIDTH * self.transfers

    def only(self, cuts: Sequence[int]) -> "PipeDreamCosts":
        some = list(cuts)
        return replace(
            self,
            compute=self.compute[some],
            parameters=self.parameters[some],
            crossing_bytes=self.crossing_bytes[some],
            no_stage=self.no_stage[np.ix_(some, some)],
        )


def costs_of(graph: Graph, where: Cuts, workers: int, transfers: bool = False) -> PipeDreamCosts:
    before = where.before.astype(float)
    of = {node.name: before[:, place] for place, node in enumerate(graph.nodes)}
    crossing = np.zeros(len(before))
    for node in graph.nodes:
        unread = [of[node.name] * (1 - of[reader]) for reader in graph.readers[node.name]]
        crossing += node.activation_bytes * np.maximum.reduce(unread) if unread else 0.0
    missing = before @ (1 - before).T  # nodes before the first cut and after the second
    is_stage = (missing == 0) & ~np.eye(len(before), dtype=bool)
    return PipeDreamCosts(
        before @ np.array([node.seconds for node in graph.nodes]),
        before @ np.array([node.parameter_bytes for node in graph.nodes]),
        crossing,
        np.where(is_stage, 0.0, math.inf),
        workers,
        transfers,
    )


def best(costs: PipeDreamCosts) -> Split:
    found = best_partition(costs)
    assert isinstance(found, Partition), "no memory limit was given"
    return found.best


def stage_seconds(costs: PipeDreamCosts, span: StageSpan) -> float:
    return float(costs.seconds(span.workers)[span.first, span.last + 1])


def transfer_seconds(costs: PipeDreamCosts, split: Split) -> float:
    """Seconds of the largest cut."""
    return max((2 * float(costs.crossing_bytes[span.first]) / BANDWIDTH for span in split.stages[1:]), default=0.0)


def stages_of(graph: Graph, where: Cuts, split: Split) -> list[dict[str, Any]]:
    """The stages: `layers` [a, b] are the a-th to the (b-1)-th node in the order in which they are reached."""
    stages = []
    for span in split.stages:
        first, last = where.before[span.first], where.before[span.last + 1]
        nodes = [node.name for node, inside in zip(graph.nodes, last & ~first, strict=True) if inside]
        stages.append({"layers": [int(first.sum()), int(last.sum())], "workers": len(span.workers), "nodes": nodes})
    return stages


def score(path: Path, workers: int) -> dict[str, Any]:
    graph = read(path)
    where = cuts(graph)
    costs = costs_of(graph, where, workers)
    chosen, bounded = best(costs), best(costs_of(graph, where, workers, transfers=True))
    return {
        "plan": stages_of(graph, where, chosen),
        "step_seconds": chosen.bottleneck,
        "data_parallel_seconds": float(costs.seconds(range(workers))[0, -1]),
        "one_worker_seconds": float(costs.seconds(range(1))[0, -1]),
        "largest_transfer_seconds": transfer_seconds(costs, chosen),
        "with_transfers": {"plan": stages_of(graph, where, bounded), "step_seconds": bounded.bottleneck},
        "cuts": len(where.before),
        "one_order_only": where.one_order,
    }


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        refuse("usage: python benchmarks/pipedream/score.py FILE WORKERS")
    file, count = arguments
    if not count.isdecimal() or int(count) < 1:
        refuse(f"WORKERS = {count!r}: give a whole number of workers, 1 or more")
    try:
        print(json.dumps(score(Path(file), int(count))))
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"cannot read the profile {file}: {error}")
    except Malformed as error:
        refuse(str(error))


def refuse(message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
