"""Comparison up to rounding: one worker's sharded step against a plain step on the whole batch.

The distance that rounding alone makes is measured, not guessed: the plain loop runs again with every weight
moved by one unit in the last place at random and the rows of each batch in another order. A difference within
SAFETY times that distance is rounding; a larger one is another step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from samestep.verification.causes import Cause, Finding
from samestep.verification.job.bit_for_bit import joined
from samestep.verification.record import Record, Step, best_factor, relative_distance

SAFETY = 16.0  # times the distance of the perturbed runs
LEAST = 1e-6  # relative; a few units in the last place of float32
LOOKED_AT = ("evaluation", "loss", "gradient", "clip norm", "parameter", "buffer")


@dataclass(frozen=True)
class RoundingDistance:
    """Distance of one value of one step, and the bound that rounding explains."""

    step: int
    kind: str
    name: str
    distance: float  # relative
    bound: float

    @property
    def is_rounding(self) -> bool:
        return self.distance <= self.bound


@dataclass(frozen=True)
class RoundingComparison:
    """Number of values compared, and the first that rounding does not explain."""

    compared: int
    furthest: RoundingDistance | None  # measured in bounds
    finding: Finding | None


def compare_up_to_rounding(found: Record, wanted: Record, perturbed: Sequence[Record]) -> RoundingComparison:
    """Compare with the plain loop. perturbed: records of the plain loop with moved weights and reordered rows."""
    distances = [one for step in wanted.steps() for one in _step(step, found, wanted, perturbed)]
    outside = [one for one in distances if not one.is_rounding]
    furthest = max(distances, key=lambda one: one.distance / one.bound, default=None)
    if not outside:
        return RoundingComparison(len(distances), furthest, None)
    first = min(outside, key=lambda one: (one.step, LOOKED_AT.index(one.kind)))
    cause, why = _cause(first, found.of(first.step), wanted.of(first.step))
    return RoundingComparison(
        len(distances), furthest, Finding(cause, first.step, first.kind, first.name, why, distance=first.distance)
    )


def _step(step: int, found: Record, wanted: Record, perturbed: Sequence[Record]) -> Iterable[RoundingDistance]:
    ours, theirs, moved = found.of(step), wanted.of(step), [one.of(step) for one in perturbed]
    for kind in LOOKED_AT:
        for name in dict.fromkeys(key.name for key in theirs if key.kind == kind):
            value, plain = joined(ours, kind, name), joined(theirs, kind, name)
            if value is None and plain is None:
                continue
            if value is None and name not in {key.name for key in ours if key.kind == kind}:
                continue  # the sharded step does not note it, such as the whole buffers of a sliced layer
            spread = [distance(joined(one, kind, name), plain) for one in moved]
            yield RoundingDistance(step, kind, name, distance(value, plain), SAFETY * max([LEAST, *spread]))


def distance(value: Tensor | None, wanted: Tensor | None) -> float:
    """Relative distance; infinite where only one of the two exists."""
    if value is None or wanted is None or value.shape != wanted.shape:
        return 0.0 if value is wanted else float("inf")
    return relative_distance([value], [wanted])


def _cause(first: RoundingDistance, ours: Step, theirs: Step) -> tuple[Cause, str]:
    off = f"{first.distance:.1e} off, rounding explains {first.bound:.1e}"
    value, plain = joined(ours, first.kind, first.name), joined(theirs, first.kind, first.name)
    if value is not None and plain is not None and value.shape == plain.shape:
        k = best_factor(value, plain)
        if k and first.kind == "gradient" and abs(k - 1) > first.bound and distance(value, plain * k) <= first.bound:
            return Cause.LOSS_WEIGHTING, f"it is {k:.6g} times that of the whole batch"
    if first.kind in ("evaluation", "loss", "gradient"):
        return Cause.LOSS_WEIGHTING, f"it is {off}: the shards' parts do not add up to the whole batch's"
    causes = {"clip norm": Cause.CLIPPING, "buffer": Cause.BUFFERS, "parameter": Cause.OPTIMIZER_STATE}
    return causes[first.kind], f"it is {off}"


def is_coupled(first: float, second: float, both: float, bound: float) -> bool:
    """Whether the mean loss of two parts of a batch together is outside the range of their own losses.

    A mean over rows or tokens is between them, whatever the weights. A loss whose rows depend on one another (in-batch
    negatives, contrastive) is not.
    """
    low, high = sorted((first, second))
    slack = bound * max(abs(low), abs(high))
    return not low - slack <= both <= high + slack
