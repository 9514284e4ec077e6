"""Costs of a pipeline's stages, for a chain of layers on a row of workers: the step's seconds, the workers' bytes.

    stage    m sum(F+B) / sum(speeds)  +  replication(parameter bytes, workers)
    cut      2 m (latency + bytes / bandwidth)          an activation down, its gradient up
    memory   state bytes + share of min(m, p-r) microbatches' activations

m microbatches, p stages, r the stage's place from 0; 1F1B keeps min(m, p-r) microbatches. The workers of a stage
share each microbatch's rows in proportion to their speeds, and each holds the whole stage's state.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from samestep.errors import PlanRefused
from samestep.planner.search.stage_costs import Floats

Replication = Callable[[Floats, range], Floats]
"""Seconds to reduce the gradients of these parameter bytes (any shape) over these workers, once a step."""


@dataclass(frozen=True)
class LayerCosts:
    """Costs of each layer, in order. Raises PlanRefused for tuples of other lengths, negative or infinite values."""

    forward: tuple[float, ...]  # seconds of a microbatch on a worker of speed 1
    backward: tuple[float, ...]
    parameter_bytes: tuple[float, ...]  # what replicas reduce
    state_bytes: tuple[float, ...]  # what a worker holds: parameters, gradients, the optimizer's state
    kept_bytes: tuple[float, ...]  # activations kept for a microbatch's backward
    crossing_bytes: tuple[float, ...]  # what crosses a cut right after the layer; the last one counts for nothing

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in vars(self).items()}
        if len(set(lengths.values())) > 1 or not self.forward:
            raise PlanRefused(f"a chain needs one value of each kind for every layer, and has {lengths}")
        for name, values in vars(self).items():
            _check_all(name, values, min(values) >= 0 and max(values) < math.inf, "0 or more, and finite")


@dataclass(frozen=True)
class WorkerRow:
    """Workers in pipeline order; a link leads from each to the next.

    `bandwidths[w]` (bytes/s) and `latencies[w]` (seconds per message) are of the link between the workers w and
    w+1, one less than there are workers. Raises PlanRefused for other lengths and for what is not above zero.
    """

    speeds: tuple[float, ...]
    memory: tuple[float, ...]  # bytes, inf for no limit
    bandwidths: tuple[float, ...]
    latencies: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.speeds)
        if not count or len(self.memory) != count or {len(self.bandwidths), len(self.latencies)} != {count - 1}:
            raise PlanRefused(
                f"{count} speeds, {len(self.memory)} memory limits, {len(self.bandwidths)} bandwidths and "
                f"{len(self.latencies)} latencies: give a limit for each worker, and a link between neighbours"
            )
        _check_all("speeds", self.speeds, min(self.speeds) > 0 and max(self.speeds) < math.inf, "above 0, and finite")
        _check_all("memory", self.memory, min(self.memory) > 0, "above 0")
        _check_all("bandwidths", self.bandwidths, min(self.bandwidths, default=1) > 0, "above 0")
        _check_all("latencies", self.latencies, min(self.latencies, default=0) >= 0, "0 or more")

    @staticmethod
    def equal(workers: int, bandwidth: float, latency: float = 0.0, memory: float = math.inf) -> "WorkerRow":
        """Workers of speed 1 with one kind of link."""
        between = max(0, workers - 1)
        return WorkerRow((1.0,) * workers, (memory,) * workers, (bandwidth,) * between, (latency,) * between)


class PipelineCosts:
    """`StageCosts` of a chain on a row of workers. Raises PlanRefused when there is less than one microbatch."""

    def __init__(self, chain: LayerCosts, row: WorkerRow, microbatches: int, replication: Replication) -> None:
        if microbatches < 1:
            raise PlanRefused(f"{microbatches} microbatches: a step has at least one")
        self.row, self.microbatches, self.replication = row, microbatches, replication
        self.num_cuts, self.num_workers = len(chain.forward), len(row.speeds)
        self.identical = all(len(set(values)) <= 1 for values in vars(row).values())
        self.deepest = microbatches if min(row.memory) < math.inf else 1
        self._compute = sums(np.add(chain.forward, chain.backward))
        self._parameters = sums(chain.parameter_bytes)
        self._state = sums(chain.state_bytes)
        self._kept = sums(chain.kept_bytes)
        self._crossing = np.array([0.0, *chain.crossing_bytes[:-1], 0.0])
        self._no_stage = np.where(np.tri(self.num_cuts + 1, dtype=bool), math.inf, 0.0)

    def seconds(self, workers: range) -> Floats:
        busy = self.microbatches * self._compute / sum(self._speeds(workers)) + self._no_stage
        return busy if len(workers) == 1 else busy + self.replication(self._parameters, workers)

    def fullness(self, workers: range, to_end: int) -> Floats:
        memory = self.row.memory[workers.start : workers.stop]
        if min(memory) == math.inf:
            return self._no_stage
        held = min(self.microbatches, to_end)
        total = sum(self._speeds(workers))
        kinds = {(speed / total, limit) for speed, limit in zip(self._speeds(workers), memory, strict=True)}
        full = [(self._state + held * share * self._kept) / limit for share, limit in sorted(kinds)]
        fullest: Floats = np.maximum.reduce(full) + self._no_stage
        return fullest

    def crossing(self, worker: int) -> Floats:
        link = worker - 1
        each: Floats = self.row.latencies[link] + self._crossing / self.row.bandwidths[link]
        each[-1] = 0.0
        return each * float(2 * self.microbatches)

    def only(self, cuts: Sequence[int]) -> "PipelineCosts":
        fewer = copy(self)
        fewer.num_cuts = len(cuts) - 1
        square = np.ix_(cuts, cuts)
        fewer._compute, fewer._parameters = self._compute[square], self._parameters[square]
        fewer._state, fewer._kept = self._state[square], self._kept[square]
        fewer._crossing, fewer._no_stage = self._crossing[list(cuts)], self._no_stage[square]
        return fewer

    def _speeds(self, workers: range) -> tuple[float, ...]:
        return self.row.speeds[workers.start : workers.stop]


def sums(values: Sequence[float] | Floats) -> Floats:
    """(L+1, L+1) sums over the layers of every stage: [i, j] is values[i] + ... + values[j-1], 0 for j <= i."""
    before = np.concatenate([[0.0], np.cumsum(values)])
    found: Floats = np.maximum(before[None, :] - before[:, None], 0.0)
    return found


def ring_all_reduce(bandwidth: float, latency: float = 0.0) -> Replication:
    """A ring all-reduce over n workers: 2(n-1) latencies and 2(n-1)/n of the bytes over the bandwidth."""

    def seconds(parameter_bytes: Floats, workers: range) -> Floats:
        rounds = 2 * (len(workers) - 1)
        return rounds * latency + rounds / len(workers) / bandwidth * parameter_bytes

    return seconds


def _check_all(name: str, values: Sequence[float], right: bool, wanted: str) -> None:
    if not right or any(math.isnan(value) for value in values):
        wrong = next((v for v in values if math.isnan(v) or v <= 0 or v == math.inf), None)
        raise PlanRefused(f"{name} has the value {wrong}: all of them must be {wanted}")
