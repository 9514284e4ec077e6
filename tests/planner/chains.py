"""Small chains and rows of workers, and the best split by trying them all."""

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from hypothesis import strategies as st

from samestep.planner.search.pipeline_costs import LayerCosts, PipelineCosts, Replication, WorkerRow, ring_all_reduce
from samestep.planner.search.stage_costs import Floats, StageSpan

amounts = st.integers(0, 20).map(float)


def free_replication(parameter_bytes: Floats, workers: range) -> Floats:
    """Replication that costs nothing."""
    return np.zeros_like(parameter_bytes)


@st.composite
def chains(draw: st.DrawFn) -> LayerCosts:
    layers = draw(st.integers(1, 5))
    kinds = [draw(st.lists(amounts, min_size=layers, max_size=layers).map(tuple)) for _ in range(6)]
    return LayerCosts(*kinds)


@st.composite
def rows(draw: st.DrawFn) -> WorkerRow:
    workers = draw(st.integers(1, 4))

    def each(values: st.SearchStrategy[float], count: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(values, min_size=count, max_size=count)))

    return WorkerRow(
        each(st.sampled_from([0.5, 1.0, 2.0, 3.0]), workers),
        each(st.sampled_from([10.0, 20.0, 40.0, 80.0, math.inf]), workers),
        each(st.sampled_from([0.5, 1.0, 8.0]), workers - 1),
        each(st.sampled_from([0.0, 1.0]), workers - 1),
    )


@st.composite
def equal_rows(draw: st.DrawFn) -> WorkerRow:
    memory = draw(st.sampled_from([10.0, 20.0, 40.0, 80.0, math.inf]))
    return WorkerRow.equal(draw(st.integers(1, 5)), draw(st.sampled_from([0.5, 1.0, 8.0])), memory=memory)


def uneven(parameter_bytes: Floats, workers: range) -> Floats:
    """A replication that depends on who the workers are, and not in a monotone way on how many."""
    return parameter_bytes * ((3 * workers.start + 5 * len(workers)) % 4)


replications: st.SearchStrategy[Replication] = st.sampled_from([free_replication, ring_all_reduce(2.0, 0.5), uneven])


def all_splits(layers: int, workers: int) -> Iterator[tuple[StageSpan, ...]]:
    """Every split into groups that stand next to one another."""
    for stages in range(1, min(layers, workers) + 1):
        for cuts in combinations(range(1, layers), stages - 1):
            ends = (0, *cuts, layers)
            for bounds in combinations(range(workers + 1), stages + 1):
                yield tuple(StageSpan(ends[n], ends[n + 1] - 1, range(bounds[n], bounds[n + 1])) for n in range(stages))


def seconds(
    chain: LayerCosts, row: WorkerRow, microbatches: int, replication: Replication, spans: tuple[StageSpan, ...]
) -> float:
    """Worked out layer by layer, as the docstring of chain.py says it."""
    times = []
    for span in spans:
        own = slice(span.first, span.last + 1)
        busy = microbatches * (sum(chain.forward[own]) + sum(chain.backward[own]))
        times.append(busy / sum(row.speeds[w] for w in span.workers))
        if len(span.workers) > 1:
            times[-1] += float(replication(np.array(sum(chain.parameter_bytes[own])), span.workers))
        if span.first:
            link = span.workers[0] - 1
            nbytes = chain.crossing_bytes[span.first - 1]
            times.append(2 * microbatches * (row.latencies[link] + nbytes / row.bandwidths[link]))
    return max(times)


def fullness(chain: LayerCosts, row: WorkerRow, microbatches: int, spans: tuple[StageSpan, ...]) -> float:
    full = []
    for place, span in enumerate(spans):
        own = slice(span.first, span.last + 1)
        kept = min(microbatches, len(spans) - place) * sum(chain.kept_bytes[own])
        total = sum(row.speeds[w] for w in span.workers)
        full += [(sum(chain.state_bytes[own]) + kept * row.speeds[w] / total) / row.memory[w] for w in span.workers]
    return max(full)


def best(costs: PipelineCosts, chain: LayerCosts, stages: int | None = None) -> float:
    """The least bottleneck of all splits that fit, of all numbers of stages or of one; inf when none does."""
    row, m = costs.row, costs.microbatches
    return min(
        (
            seconds(chain, row, m, costs.replication, spans)
            for spans in all_splits(len(chain.forward), len(row.speeds))
            if stages in (None, len(spans)) and fullness(chain, row, m, spans) <= 1
        ),
        default=math.inf,
    )
