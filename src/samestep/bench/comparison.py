"""A comparison of contestants and its result: their order, ties, the regret of our pick."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samestep.bench.contenders.contender_process import Contender
from samestep.bench.contestants import AGAIN, Contestant, maker, pick_of
from samestep.bench.intervals import Interval, median_of, noise_of, ratio_of, regret_of
from samestep.bench.rounds import Measurements, Say, TimeBudget, race
from samestep.launch.request.request import Request
from samestep.plan.plan import Plan


@dataclass(frozen=True)
class Line:
    """One contestant's line of the table."""

    name: str
    seconds: Interval | None  # per step; None when it was not measured
    to_best: Interval | None  # its median over that of the best
    predicted: float | None  # seconds
    reason: str  # why it was not measured; else a note
    losses: Sequence[float]
    is_tie: bool = False  # with the best, within the noise

    @property
    def error(self) -> float | None:
        """Relative error of the prediction."""
        if self.predicted is None or self.seconds is None:
            return None
        return self.predicted / self.seconds.value - 1.0

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": None if self.seconds is None else vars(self.seconds),
            "to_best": None if self.to_best is None else vars(self.to_best),
            "predicted": self.predicted,
            "error": self.error,
            "tie": self.is_tie,
            "note": self.reason,
            "losses": [loss if abs(loss) < float("inf") else None for loss in self.losses],
        }


@dataclass(frozen=True)
class Regret:
    """Cost of our pick against the best of some contestants, as a share of the best one's time."""

    pick: str
    best: str
    share: float
    ratio: Interval
    is_tie: bool


@dataclass(frozen=True)
class ComparisonResult:
    """Result of a comparison. lines: the fastest first, then those that were not measured.

    again: the reference's second copy over the first (A/A); noise: the distance of that from 1.
    among_plans: regret against our plans of the same numerics; among_all: against all contestants.
    """

    lines: Sequence[Line]
    rounds: int
    reference: str
    again: Interval | None
    noise: float
    among_plans: Regret | None
    among_all: Regret | None

    def as_json(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "reference": self.reference,
            "again": None if self.again is None else vars(self.again),
            "noise": self.noise,
            "regret": None if self.among_plans is None else asdict(self.among_plans),
            "regret_among_all": None if self.among_all is None else asdict(self.among_all),
            "contestants": [line.as_json() for line in self.lines],
        }


def compare(
    contestants: Sequence[Contestant], request: Request, budget: TimeBudget, *, warm_heap: bool = False, say: Say
) -> ComparisonResult:
    """Measure contestants in rounds: our pick twice, or the first one where none is ours."""
    pick = pick_of(contestants)
    reference = contestants[0] if pick is None else pick
    makers: dict[str, Callable[[], Contender]] = {
        one.name: maker(one, request, warm_heap=warm_heap) for one in contestants
    }
    makers[reference.name + AGAIN] = makers[reference.name]
    found = race(makers, budget, say)
    return verdict_of(contestants, found, reference.name, pick)


def verdict_of(
    contestants: Sequence[Contestant], found: Mapping[str, Measurements], reference: str, pick: Contestant | None
) -> ComparisonResult:
    """Judge measurements, by name; the reference's second copy is under its name and `AGAIN`."""
    medians = complete(found)
    twin = reference + AGAIN
    again = ratio_of(medians[twin], medians[reference]) if {twin, reference} <= set(medians) else None
    noise = 0.0 if again is None else noise_of(again)
    named = [one for one in contestants if one.name in medians]
    typical = {name: median_of(samples) for name, samples in medians.items()}
    best = min(named, key=lambda one: typical[one.name].value, default=None)
    lines = []
    for one in contestants:
        measured = typical.get(one.name)
        ratio = None if measured is None or best is None else ratio_of(medians[one.name], medians[best.name])
        tie = ratio is not None and ratio.value <= 1 + noise
        reason = reason_of(found[one.name], one.name in medians)
        lines.append(Line(one.name, measured, ratio, one.predicted_seconds, reason, found[one.name].losses, tie))
    lines.sort(key=lambda line: (line.seconds is None, line.seconds.value if line.seconds else 0.0))

    def regret(of: Sequence[Contestant]) -> Regret | None:
        if pick is None or pick not in of:
            return None
        least = min(of, key=lambda one: typical[one.name].value)
        ratio = ratio_of(medians[pick.name], medians[least.name])
        share = regret_of(typical[pick.name].value, typical[least.name].value)
        return Regret(pick.name, least.name, share, ratio, ratio.value <= 1 + noise)

    rounds = max(map(len, medians.values()), default=0)
    same = [one for one in named if pick is not None and numerics_of(one) == numerics_of(pick)]
    return ComparisonResult(lines, rounds, reference, again, noise, regret(same), regret(named))


def complete(found: Mapping[str, Measurements]) -> dict[str, list[float]]:
    """Medians of the contestants that took part in every round."""
    rounds = max((len(one.medians) for one in found.values()), default=0)
    return {name: one.medians for name, one in found.items() if rounds and len(one.medians) == rounds}


def reason_of(found: Measurements, measured: bool) -> str:
    if found.refused is not None:
        return f"does not apply: {found.refused}"
    if found.failed is not None:
        return f"failed: {found.failed}"
    return found.note if measured else "not measured"


def numerics_of(contestant: Contestant) -> str | None:
    """The numerics of a plan: regret is among plans of equal bits."""
    return None if contestant.plan_text is None else Plan.parse(contestant.plan_text).numerics.line()
