"""A made-up step of training on several processes and on one, to be spoiled by tests; no process runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samestep.verification.causes import Finding
from samestep.verification.record import Key, Noted, Step, tensor_digest
from samestep.verification.script.collective_order import Call, ObservedWorker
from samestep.verification.script.judge_runs import judge_step
from samestep.verification.script.step_records import StepRecords, Vectors

SIZES = {"a.weight": 12, "a.bias": 5, "b.weight": 7}
NAMES = list(SIZES)
Value = Tensor | float | str
Process = dict[Key, Value]  # what one process notes in a step


def noted(rank: int, value: Value) -> Noted:
    if isinstance(value, str):
        return Noted(rank, value, (), torch.zeros(0, dtype=torch.float64), value)
    tensor = torch.as_tensor(value, dtype=torch.float64)
    return Noted(rank, tensor_digest(tensor), tuple(tensor.shape), tensor.reshape(-1))


def seen(rank: int, *collectives: Call, status: int = 0, **more: Any) -> ObservedWorker:
    plain = {"killed": False, "in_collective": False, "last_lines": (), "stack": ""}
    return ObservedWorker(rank=rank, status=status, collectives=collectives, **{**plain, **more})


def together(processes: Sequence[Process]) -> Step:
    found: dict[Key, list[Noted]] = {}
    for rank, process in enumerate(processes):
        for key, value in process.items():
            found.setdefault(key, []).append(noted(rank, value))
    return found


def some_tensors(seed: int) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in SIZES.items()}


def weighted(parts: Sequence[Vectors], weights: Sequence[float]) -> Vectors:
    """sum w l, by name."""
    return {
        name: torch.stack([part[name] * w for part, w in zip(parts, weights, strict=True)]).sum(0) for name in SIZES
    }


def process(parts: Sequence[Vectors], combined: Vectors, rows: Sequence[str]) -> Process:
    """parts: gradients of micro-batches; rows: of each, names with blanks between."""
    found: Process = {}
    for micro, (part, drawn) in enumerate(zip(parts, rows, strict=True)):
        found[Key("rows", "batch", micro)] = drawn
        found[Key("loss", "loss", micro)] = 1.5
        found |= {Key("local gradient", name, micro): part[name] for name in reversed(NAMES)}
    found |= {Key("gradient", name): combined[name] for name in NAMES}
    found[Key("clip norm", "norm")] = float(torch.cat(list(combined.values())).norm())
    settings: dict[str, Value] = {"optimizer": 0.0, "states before": 3.0, "lr of group 0": 0.1}
    settings |= {"not in the optimizer": "", "not in the model": "0"}
    found |= {Key("setting", name): value for name, value in settings.items()}
    for name in NAMES:
        found[Key("optimizer state", f"{name}.momentum_buffer")] = combined[name]
        found[Key("parameter", name)] = 1 - 0.1 * combined[name]
    found[Key("buffer", "a.average")] = torch.ones(3)
    return found


@dataclass
class Made:
    """workers[r], reference and perturbed are right until a test changes them."""

    parts: list[list[Vectors]]  # by worker and micro-batch
    workers: list[Process]
    reference: Process
    perturbed: Process
    facts: list[dict[str, Any]]
    step: int = 0
    earlier: list[tuple[int, Step]] = field(default_factory=list)

    def view(self) -> StepRecords:
        reference, perturbed = together([self.reference]), together([self.perturbed])
        return StepRecords(self.step, together(self.workers), reference, perturbed, tuple(self.facts))

    def findings(self) -> list[Finding]:
        return judge_step(self.view(), self.earlier, [seen(rank) for rank in range(len(self.workers))])

    def finding(self) -> Finding:
        (found,) = self.findings()
        return found

    def all_parts(self) -> list[Vectors]:
        return [part for worker in self.parts for part in worker]

    def combined(self) -> Vectors:
        parts = self.all_parts()
        return weighted(parts, [1 / len(parts)] * len(parts))

    def get(self, rank: int, gradients: Mapping[str, Tensor]) -> None:
        """Let a worker's optimizer get other gradients."""
        self.workers[rank] |= {Key("gradient", name): value for name, value in gradients.items()}

    def everywhere(self, key: Key, value: Value) -> None:
        for one in [*self.workers, self.reference, self.perturbed]:
            one[key] = value

    def remove(self, kind: str) -> None:
        for one in [*self.workers, self.reference, self.perturbed]:
            for key in [key for key in one if key.kind == kind]:
                del one[key]

    def permuted(self, order: Sequence[int]) -> "Made":
        workers, facts = [self.workers[r] for r in order], [self.facts[r] for r in order]
        parts = [self.parts[r] for r in order]
        return Made(parts, workers, self.reference, self.perturbed, facts, self.step, self.earlier)


def made(workers: int = 2, micro: int = 1, seed: int = 0) -> Made:
    parts = [[some_tensors(1000 * seed + 10 * r + m) for m in range(micro)] for r in range(workers)]
    flat = [part for worker in parts for part in worker]
    combined = weighted(flat, [1 / len(flat)] * len(flat))
    whole = [weighted([worker[m] for worker in parts], [1 / workers / micro] * workers) for m in range(micro)]
    drawn = [[f"row-{r}-{m}-0 row-{r}-{m}-1" for m in range(micro)] for r in range(workers)]
    reference = process(whole, combined, [" ".join(rows) for rows in zip(*drawn, strict=True)])
    moved = {key: value * (1 + 1e-9) if isinstance(value, Tensor) else value for key, value in reference.items()}
    alone = [process(parts[r], combined, drawn[r]) for r in range(workers)]
    facts = [{"batchnorm": [], "rows": 1000, "passes": [], "stream": None} for _ in range(workers)]
    return Made(parts, alone, reference, moved, facts)
