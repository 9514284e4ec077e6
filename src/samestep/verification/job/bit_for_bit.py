"""Comparison bit for bit: the record of a run against that of one worker with the same numerics.

The first difference, in the order in which a step makes its values, is the place. For a gradient the shards' own
gradients show the cause: the sum should be 1 l_0 + 1 l_1 + ... + 1 l_(S-1), and the factors that fit best are one of

    1 1 0 1    the gradient of shard 2 was left out          missing reduction
    1 1 2 1    it was added twice                            double counting
    k k k k    all of it is off by one factor                loss weighting
    1 1 1 1    added in another order                        rounding
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import AS, KINDS, Key, Noted, Record, Step, best_factor, folded, relative_distance

FITS = 1e-3  # relative distance of a sum that factors explain
ROUNDING = 1e-5  # relative distances below it are rounding
BATCHNORM = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class BitComparison:
    """Number of values compared, by kind, and the first that differs."""

    compared: Mapping[str, int]
    finding: Finding | None


@dataclass(frozen=True)
class ValueDifference:
    """A value whose bits differ from one worker's."""

    key: Key
    found: Noted
    wanted: Noted

    @property
    def distance(self) -> float:
        if self.found.values.shape != self.wanted.values.shape:
            return float("inf")
        return relative_distance([self.found.values], [self.wanted.values])


def compare_bits(found: Record, wanted: Record) -> BitComparison:
    """Compare with one worker's record, `wanted`. Values that only one of the two noted are left out."""
    compared: Counter[str] = Counter()
    before: tuple[Step, Step] = ({}, {})
    for step in wanted.steps():
        ours, theirs = found.of(step), wanted.of(step)
        compared.update(key.kind for key in theirs if key in ours)
        differences = list(differences_of(ours, theirs))
        if differences:
            first = min(differences, key=lambda d: KINDS.index(d.key.kind))
            return BitComparison(dict(compared), explain(step, first, (ours, theirs), before))
        before = (ours, theirs)
    return BitComparison(dict(compared), None)


def differences_of(found: Step, wanted: Step) -> Iterator[ValueDifference]:
    """Differences in the order in which one worker noted the values."""
    for key, (one, *_) in wanted.items():
        for other in found.get(key, ()):
            if other.digest != one.digest:
                yield ValueDifference(key, other, one)


def explain(step: int, first: ValueDifference, now: tuple[Step, Step], before: tuple[Step, Step]) -> Finding:
    key = first.key
    cause, why = MEANINGS.get(key.kind) or EXPLANATIONS[key.kind](first, now, before)
    shard = None if key.shard < 0 else key.shard
    return Finding(cause, step, key.kind, key.name, why, shard, first.found.rank, first.distance)


Pair = tuple[Step, Step]  # found, wanted


MEANINGS = {  # of kinds whose differences have one cause
    "rows": (Cause.DATA_ORDER, "the shard has other rows than with one worker"),
    "random stream": (
        Cause.RANDOM_STREAM,
        "after the shard's forward the generators are in another state than with one worker",
    ),
    "weights": (Cause.STALE_WEIGHTS, "the shard was computed with other values than the last update produced"),
}


def _own_work(same: str, first: ValueDifference, now: Pair, before: Pair) -> tuple[Cause, str]:
    """Explain a value that a shard's worker computes from equal ones. same: the equal ones, and the value's name."""
    return Cause.ROUNDING if first.distance < ROUNDING else Cause.HIDDEN_STATE, f"{same} is {_offset(first)}"


def _loss(first: ValueDifference, now: Pair, before: Pair) -> tuple[Cause, str]:
    found, wanted = float(first.found.values[0]), float(first.wanted.values[0])
    if first.key.kind == "evaluation":
        return (
            Cause.LOSS_WEIGHTING,
            f"{found:g} instead of {wanted:g}, of the same held-out rows by the same parameters",
        )
    if first.key.name == "of the batch" or first.key.kind == "loss weight":
        return Cause.LOSS_WEIGHTING, f"{found:g} instead of {wanted:g}, from the same shards"
    return Cause.HIDDEN_STATE, f"{found:g} instead of {wanted:g}, though every layer's output is the same"


def _gradient(first: ValueDifference, now: Pair, before: Pair) -> tuple[Cause, str]:
    name = first.key.name
    found, wanted = (joined(step, "gradient", name) for step in now)
    if found is None or wanted is None or found.shape != wanted.shape:
        return Cause.MISSING_REDUCTION, "one of the two has no gradient at all"
    earlier = joined(before[1], "gradient", name)
    if earlier is not None and earlier.shape == found.shape and relative_distance([found], [earlier]) < ROUNDING:
        return Cause.STALE_WEIGHTS, "it is the gradient of the step before"
    shards = {label: noted.values for label, noted in _locals(now[1], name).items()}
    holders = {label: noted.rank for label, noted in _locals(now[0], name).items()}
    cause, why = explain_sum(found, wanted, shards, holders)
    others = {key.name for key in now[1] if key.kind == "local gradient" and AS not in key.name} - {name}
    for other in sorted(others if cause in (Cause.UNKNOWN, Cause.MISSING_REDUCTION) else ()):
        strange = {label: noted.values for label, noted in _locals(now[1], other).items()}
        lost = swapped_shards(found, wanted, shards, strange)
        if lost:
            where = sorted({holders[label] for label in lost if label in holders})
            return Cause.COLLECTIVE_ORDER, (
                f"instead of the gradients of shards [{', '.join(lost)}], of workers {where}, it has those of {other}"
            )
    return cause, why


def _locals(step: Step, name: str) -> dict[str, Noted]:
    """A parameter's gradients by shard, for a tied one also by the name under which it was used."""
    found = {}
    for key, (noted, *_) in step.items():
        if key.kind == "local gradient" and key.name.split(AS)[0] == name:
            found[f"{key.shard}{key.name.removeprefix(name)}"] = noted
    return found


def explain_sum(
    found: Tensor, wanted: Tensor, shards: Mapping[str, Tensor], holders: Mapping[str, int]
) -> tuple[Cause, str]:
    """The cause for which a sum of shards' gradients is wrong.

    All tensors are 1-D and folded alike. holders: the worker of each shard.
    """
    distance = relative_distance([found], [wanted])
    if distance < ROUNDING:
        return Cause.ROUNDING, f"it is {distance:.1e} off, as another order of additions makes it"
    k = best_factor(found, wanted)
    if k and relative_distance([found], [wanted * k]) < ROUNDING:
        return Cause.LOSS_WEIGHTING, f"it is {k:.6g} times what one worker has"
    factors = factors_of(found, wanted, shards)
    if factors is None:
        return Cause.UNKNOWN, f"it is {distance:.1e} off, and no factors of the shards' gradients explain it"
    listed = ", ".join(f"{factor:.3g}" for factor in factors.values())
    lost = [label for label, factor in factors.items() if abs(factor) < 0.05]
    if lost:
        where = sorted({holders[label] for label in lost if label in holders})
        return Cause.MISSING_REDUCTION, (
            f"the gradients of shards [{', '.join(lost)}], of workers {where}, are not in it: factors {listed}"
        )
    if max(factors.values()) > 1.5:
        return Cause.DOUBLE_COUNTING, f"the shards' gradients enter with the factors {listed}"
    return Cause.LOSS_WEIGHTING, f"the shards' gradients enter with the factors {listed}"


def factors_of(
    found: Tensor, wanted: Tensor, shards: Mapping[str, Tensor], parts: int | None = None
) -> dict[str, float] | None:
    """Factors with which the shards' gradients enter `found`, all 1 in `wanted`; None when no factors fit.

    parts: number of the first shards that `wanted` consists of; default all.
    """
    columns = [shard for shard in shards.values() if shard.shape == found.shape]
    if len(columns) < len(shards) or len(columns) < 2:
        return None
    basis = torch.stack(columns, 1)
    whole = basis[:, :parts].sum(1)
    unit = best_factor(wanted, whole)  # the factor of the loss
    solution = torch.linalg.lstsq(basis, found[:, None]).solution[:, 0]
    if not unit or relative_distance([basis @ solution], [found]) > FITS:
        return None
    return dict(zip(shards, (solution / unit).tolist(), strict=True))


def swapped_shards(
    found: Tensor, wanted: Tensor, shards: Mapping[str, Tensor], strange: Mapping[str, Tensor]
) -> list[str]:
    """Shards that entered a sum with the gradients of another parameter; none where that does not fit."""
    if set(strange) != set(shards) or any(shard.shape != found.shape for shard in strange.values()):
        return []
    factors = factors_of(found, wanted, {**shards, **{f"{label} of the other": one for label, one in strange.items()}},
                         parts=len(shards))  # fmt: skip
    if factors is None:
        return []
    own = {label: factors[label] for label in shards}
    others = {label: factors[f"{label} of the other"] for label in shards}
    lost = [label for label in shards if abs(own[label]) < 0.05 and abs(others[label] - 1) < 0.05]
    kept = [label for label in shards if abs(own[label] - 1) < 0.05 and abs(others[label]) < 0.05]
    return lost if len(lost) + len(kept) == len(shards) else []


def _norm(first: ValueDifference, now: Pair, before: Pair) -> tuple[Cause, str]:
    found, wanted = float(first.found.values[0]), float(first.wanted.values[0])
    return Cause.CLIPPING, f"the norm is {found:.9g} instead of {wanted:.9g}, of the same gradient"


def _optimizer(first: ValueDifference, now: Pair, before: Pair) -> tuple[Cause, str]:
    return Cause.OPTIMIZER_STATE, f"the gradient is the same, and it is {_offset(first)}"


def _parameter(first: ValueDifference, now: Pair, before: Pair) -> tuple[Cause, str]:
    name = first.key.name
    found, wanted = (joined(step, "parameter", name) for step in now)
    old = joined(before[1], "parameter", name)
    if found is not None and wanted is not None and old is not None and found.shape == wanted.shape == old.shape:
        if torch.equal(found, old):
            return Cause.STALE_WEIGHTS, "the update did not change it"
        step, should = found - old, wanted - old
        k = best_factor(step, should)
        if k and abs(k - 1) > ROUNDING and relative_distance([step], [should * k]) < 1e-3:
            is_clipped = any(key.kind == "clip norm" for key in now[1])
            return (Cause.CLIPPING if is_clipped else Cause.OPTIMIZER_STATE), f"it moved {k:.6g} times as far"
    return Cause.STALE_WEIGHTS, f"gradient and optimizer state are the same, and it is {_offset(first)}"


def _buffer(first: ValueDifference, now: Pair, before: Pair) -> tuple[Cause, str]:
    cause = Cause.BATCHNORM if first.key.name.rpartition(".")[2] in BATCHNORM else Cause.BUFFERS
    return cause, f"after the step it is {_offset(first)}"


EXPLANATIONS: Mapping[str, Callable[[ValueDifference, Pair, Pair], tuple[Cause, str]]] = {
    "evaluation": _loss,
    "activation": partial(_own_work, "rows, weights and random numbers are the same, and the output"),
    "loss": _loss,
    "loss weight": _loss,
    "local gradient": partial(_own_work, "the same forward, and the gradient"),
    "gradient": _gradient,
    "clip norm": _norm,
    "setting": _optimizer,
    "optimizer state": _optimizer,
    "parameter": _parameter,
    "buffer": _buffer,
}


def _offset(first: ValueDifference) -> str:
    return f"{first.distance:.1e} off" if first.distance < float("inf") else "another one"


def joined(step: Step, kind: str, name: str) -> Tensor | None:
    """All stretches of a parameter's value, folded as the whole would be; None when there are none."""
    parts = {key.part: noted[0] for key, noted in step.items() if key.kind == kind and key.name == name}
    if not parts or any(noted.text for noted in parts.values()):
        return None
    return folded(torch.cat([parts[number].values for number in sorted(parts)]))
