"""One step of all runs of a script, side by side, and bounds on the differences that rounding makes.

    l_rm    gradient of worker r's own rows in micro-batch m        "local gradient", shard m
    c_r     gradient that worker r's optimizer gets                 "gradient"
    g, g'   gradient on one process, and with parameters moved by one unit in the last place

A tensor differs where |c - g| / |g| > 10 max(d, median of d, 4 eps), with d = |g' - g| / |g| measured per tensor.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samestep.verification.record import Step, relative_distance

MULTIPLE = 10.0  # times the measured rounding
EPS = torch.finfo(torch.float32).eps

Vectors = dict[str, Tensor]
Facts = Mapping[str, Any]  # a worker's notes on its whole run


@dataclass(frozen=True)
class StepRecords:
    """Records of one step: of all workers, of one process, and of one process with perturbed parameters."""

    step: int
    workers: Step
    reference: Step
    perturbed: Step
    facts: tuple[Facts, ...]

    def ranks(self) -> list[int]:
        return sorted({noted.rank for each in self.workers.values() for noted in each})

    def per_rank(self, kind: str) -> dict[int, Vectors]:
        """Tensors of a kind by rank and name, summed over micro-batches and over calls."""
        return {rank: vectors(self.workers, kind, rank) for rank in self.ranks()}

    def on_one_process(self, kind: str) -> Vectors:
        return vectors(self.reference, kind)

    def bounds(self, kind: str) -> dict[str, float]:
        """Bound on the relative distance that rounding makes, per tensor, from the perturbed run."""
        wanted, moved = self.on_one_process(kind), vectors(self.perturbed, kind)
        distances = {
            n: relative_distance([moved[n]], [wanted[n]]) for n in wanted if n in moved and same_shape(moved, wanted, n)
        }
        finite = [value for value in distances.values() if value != float("inf")]
        middle = statistics.median(finite) if finite else 0.0
        return {name: MULTIPLE * max(distances.get(name, 0.0), middle, 4 * EPS) for name in wanted}

    def batchnorms(self) -> list[str]:
        """Layers in training mode that normalise by each worker's own rows."""
        return list(dict.fromkeys(layer for fact in self.facts for layer in fact.get("batchnorm", [])))


def same_shape(one: Vectors, other: Vectors, name: str) -> bool:
    return one[name].shape == other[name].shape


def vectors(run: Step, kind: str, rank: int = 0) -> Vectors:
    """One process's tensors of a kind, by name, summed over micro-batches and over calls."""
    found: Vectors = {}
    for key, each in run.items():
        for noted in each:
            if key.kind == kind and noted.rank == rank:
                found[key.name] = found[key.name] + noted.values if key.name in found else noted.values
    return found
