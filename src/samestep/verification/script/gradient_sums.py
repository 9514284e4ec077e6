"""Combination of the workers' gradients: the pattern that c follows, compared with g = sum of all l.

    c_r = k l_r, or c_r differ without a pattern        missing reduction
    c_r = k_r g, with another k_r on every worker       clipping
    c = k g, of all parameters                          loss weighting
    c = k g, of some parameters                         double counting (k > 1) or missing reduction
    c = sum w l, g = sum v l, w other than v            loss weighting
    none of these, and a BatchNorm layer trains         BatchNorm

c, g and l as in step_records.py. A factor counts where it leaves each tensor within three times its bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import Key, best_factor, relative_distance
from samestep.verification.script.step_records import EPS, StepRecords, Vectors, same_shape, vectors

NOTHING = 1e-6  # of the largest norm: below it, a gradient is zero up to rounding
DROPPED = 1e-3  # relative distance between a last micro-batch's gradient and that of all
FITS = 1e-4  # relative distance of a sum that weights explain


def judge_accumulation(view: StepRecords) -> Finding | None:
    """Check that on one process the optimizer gets the gradients of all micro-batches."""
    last = max((key.shard for key in view.reference if key.kind == "local gradient"), default=0)
    if last == 0:
        return None
    gradients = view.on_one_process("gradient")
    totals = vectors(view.reference, "local gradient")
    for name in (name for name in gradients if name in totals):
        final = view.reference.get(Key("local gradient", name, last))
        if final is None or final[0].values.shape != gradients[name].shape:
            continue
        is_last = relative_distance([gradients[name]], [final[0].values]) < 4 * EPS
        if is_last and relative_distance([gradients[name]], [totals[name]]) > DROPPED:
            why = f"the optimizer gets the gradient of the last of {last + 1} micro-batches; the others are dropped"
            return Finding(Cause.MISSING_REDUCTION, view.step, "gradient", name, why, shard=last)
    return None


@dataclass(frozen=True)
class Sums:
    """The gradients of one step that can be compared, by parameter."""

    found: Mapping[int, Vectors]  # c_r, by worker
    own: Mapping[int, Vectors]  # l_r
    wanted: Vectors  # g
    bounds: Mapping[str, float]
    names: list[str]  # compared
    wrong: list[str]  # of these, the ones where some worker's differs from one process's

    def distance(self, name: str, rank: int) -> float:
        return relative_distance([self.found[rank][name]], [self.wanted[name]])

    def furthest(self, name: str) -> int:
        return max(self.found, key=lambda rank: self.distance(name, rank))

    def unequal(self) -> list[str]:
        """Wrong parameters whose gradients differ between workers."""
        first, *others = self.found.values()
        return [
            name
            for name in self.wrong
            if any(relative_distance([other[name]], [first[name]]) > self.bounds[name] for other in others)
        ]

    def count(self) -> str:
        return f"{len(self.wrong)} of {len(self.names)} parameters"


def sums_of(view: StepRecords) -> Sums:
    wanted, bounds, found = view.on_one_process("gradient"), view.bounds("gradient"), view.per_rank("gradient")
    names = [name for name in wanted if all(name in mine and same_shape(mine, wanted, name) for mine in found.values())]
    nothing = NOTHING * max((float(each.norm()) for each in wanted.values()), default=0.0)
    names = [name for name in names if float(wanted[name].norm()) > nothing]
    wrong = [
        name
        for name in names
        if any(relative_distance([mine[name]], [wanted[name]]) > bounds[name] for mine in found.values())
    ]
    return Sums(found, view.per_rank("local gradient"), wanted, bounds, names, wrong)


def judge_gradients(view: StepRecords) -> Finding | None:
    sums = sums_of(view)
    if not sums.wrong:
        return None
    name = sums.wrong[0]
    worker = sums.furthest(name)
    distance = sums.distance(name, worker)
    if sums.unequal():
        cause, why = explain_inequality(sums)
        return Finding(cause, view.step, "gradient", name, f"{why}; {distance:.2g} apart", None, worker, distance)
    scaled = explain_factor(view, sums)
    layers = view.batchnorms()
    if scaled is None and layers:  # before weights: each worker's own statistics may look like any
        why = f"gradients differ in {sums.count()}, and each worker normalises by its own rows in {', '.join(layers)}"
        return Finding(Cause.BATCHNORM, view.step, "buffer", layers[0], why, distance=distance)
    cause, why = scaled or explain_weights(view, sums)
    return Finding(cause, view.step, "gradient", name, f"{why}; {distance:.2g} apart", distance=distance)


def explain_inequality(sums: Sums) -> tuple[Cause, str]:
    """The cause when workers' gradients differ from one another."""
    names = sums.names
    wanted = [sums.wanted[name] for name in names]
    factors = {r: common_factor([mine[n] for n in names], wanted, sums.bounds, names) for r, mine in sums.found.items()}
    if all(one is not None for one in factors.values()):
        each = ", ".join(f"worker {rank}: {one:.4g}" for rank, one in factors.items())
        return Cause.CLIPPING, f"each worker has the right gradient times a factor of its own ({each})"
    if any(is_own(sums, name) for name in sums.unequal()):
        return Cause.MISSING_REDUCTION, f"every worker keeps the gradient of its own rows, in {sums.count()}"
    return Cause.MISSING_REDUCTION, f"workers' gradients differ from one another, in {sums.count()}"


def is_own(sums: Sums, name: str) -> bool:
    """Whether c_r = k l_r on every worker."""
    return all(
        name in sums.own[rank] and common_factor([mine[name]], [sums.own[rank][name]], sums.bounds, [name]) is not None
        for rank, mine in sums.found.items()
    )


def explain_factor(view: StepRecords, sums: Sums) -> tuple[Cause, str] | None:
    """The cause when all workers have k times one process's gradient; None when they have not."""
    mine = next(iter(sums.found.values()))
    k = common_factor([mine[n] for n in sums.wrong], [sums.wanted[n] for n in sums.wrong], sums.bounds, sums.wrong)
    if k is None:
        return None
    micro = 1 + max((key.shard for key in view.workers if key.kind == "rows"), default=0)
    known = name_factor(k, len(sums.found), micro)
    why = f"{k:.6g} times one process's gradient{known}, in {sums.count()}"
    if len(sums.wrong) == len(sums.names):
        return Cause.LOSS_WEIGHTING, why
    return Cause.DOUBLE_COUNTING if k > 1 else Cause.MISSING_REDUCTION, why


def explain_weights(view: StepRecords, sums: Sums) -> tuple[Cause, str]:
    """The cause when all workers have one gradient that is no multiple of one process's."""
    weights = part_weights(view, sums)
    if weights is None:
        return Cause.UNKNOWN, f"workers agree with one another, in {sums.count()} not with one process"
    got, right = (", ".join(f"{value:.4g}" for value in each) for each in weights)
    return Cause.LOSS_WEIGHTING, f"parts are weighted {got}, on one process {right}"


def common_factor(
    found: Sequence[Tensor], wanted: Sequence[Tensor], bounds: Mapping[str, float], names: Sequence[str]
) -> float | None:
    """k with found = k wanted within the bounds; None when there is none."""
    if any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return None
    f, w = torch.cat(list(found)), torch.cat(list(wanted))
    k = best_factor(f, w)
    if abs(k) < 1e-9:
        return None
    for a, b, name in zip(found, wanted, names, strict=True):
        if relative_distance([a / k], [b]) > 3 * bounds.get(name, 0.0):
            return None
    return k


def name_factor(k: float, workers: int, micro: int) -> str:
    known = {
        "the number of workers": workers,
        "one by the number of workers": 1 / workers,
        "the number of micro-batches": micro,
        "one by the number of micro-batches": 1 / micro,
        "workers times micro-batches": workers * micro,
        "one by workers times micro-batches": 1 / (workers * micro),
    }
    names = [name for name, value in known.items() if value != 1 and abs(k / value - 1) < 1e-4]
    return f" ({names[0]})" if names else ""


def part_weights(view: StepRecords, sums: Sums) -> tuple[list[float], list[float]] | None:
    """Weights w and v of the parts l_rm with which c = sum w l and g = sum v l, where both fit."""
    parts: dict[tuple[int, int], Vectors] = {}
    for key, each in view.workers.items():
        if key.kind == "local gradient":
            for noted in each:
                parts.setdefault((noted.rank, key.shard), {})[key.name] = noted.values
    names, wanted = sums.names, sums.wanted
    columns = [p for _, p in sorted(parts.items()) if all(n in p and same_shape(p, wanted, n) for n in names)]
    if len(columns) < 2:
        return None
    matrix = torch.stack([torch.cat([p[n] for n in names]) for p in columns], 1)
    found = []
    for target in (next(iter(sums.found.values())), wanted):
        vector = torch.cat([target[n] for n in names])
        weights = torch.linalg.lstsq(matrix, vector.unsqueeze(1), driver="gelsd").solution
        if relative_distance([(matrix @ weights).squeeze(1)], [vector]) > FITS:
            return None
        found.append(weights.squeeze(1).tolist())
    return found[0], found[1]
