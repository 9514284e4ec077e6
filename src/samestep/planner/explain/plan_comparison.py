"""Comparison of a plan with the pick: the parts of the step in which it loses, and those in which it wins."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from samestep.plan.plan import Plan
from samestep.plan.prediction import PARTS, in_ms
from samestep.planner.cost.confidence import interval
from samestep.planner.search.decision import Decision
from samestep.planner.search.search import TIE, Candidate, plan_kind

SMALL = 0.002  # of a step: smaller differences are not mentioned


@dataclass(frozen=True)
class Comparison:
    """A plan beside the pick; `apart` is seconds more than the pick's by name of PARTS, below 0 where the plan wins,
    which add up to `more`."""

    name: str
    kind: str
    workers: int
    seconds: float
    low: float  # nominal 90 % interval
    high: float
    parts: Mapping[str, float]
    apart: Mapping[str, float]
    more: float  # seconds more than the pick

    @property
    def loses(self) -> list[tuple[str, float]]:
        """Parts in which the plan is slower than the pick, with the seconds; the largest first."""
        found = [(part, seconds) for part, seconds in self.apart.items() if seconds > SMALL * self.seconds]
        return sorted(found, key=lambda each: -each[1])

    @property
    def wins(self) -> list[tuple[str, float]]:
        found = [(part, -seconds) for part, seconds in self.apart.items() if seconds < -SMALL * self.seconds]
        return sorted(found, key=lambda each: -each[1])

    def text(self) -> str:
        words = [f"{self.name}: {in_ms(self.seconds)} ms ({in_ms(self.low)} to {in_ms(self.high)}), {self.verdict()}"]
        for verb, parts in (("loses", self.loses), ("wins", self.wins)):
            if parts:
                words.append(f"{verb} " + ", ".join(f"{part} {in_ms(seconds)} ms" for part, seconds in parts))
        return "; ".join(words)

    def verdict(self) -> str:
        pick = self.seconds - self.more
        if abs(self.more) <= TIE * pick:
            return "a tie with the pick, which is the simpler plan or the faster one"
        word = "more" if self.more > 0 else "less"
        return f"{in_ms(abs(self.more))} ms ({abs(self.more) / pick:.0%}) {word} than the pick"


def compare_to_pick(decision: Decision, other: Candidate) -> Comparison:
    pick = decision.pick.estimate.parts
    low, high = interval(other.seconds, other.kind, decision.profile.costs.together.spread)
    apart = {part: other.estimate.parts[part] - pick[part] for part in PARTS}
    more = other.seconds - decision.pick.seconds
    return Comparison(
        other.name, other.kind, other.plan.workers, other.seconds, low, high, other.estimate.parts, apart, more
    )


def runners_up(decision: Decision, most: int = 5) -> list[Comparison]:
    """The best plan of each other kind; then the best of known kinds on other numbers of workers."""
    chosen = best_by(decision, lambda one: one.kind)[1:]
    others = [one for one in best_by(decision, lambda one: (one.kind, one.plan.workers)) if one is not decision.pick]
    chosen += [one for one in others if one not in chosen]
    return [compare_to_pick(decision, one) for one in sorted(chosen[:most], key=lambda one: one.seconds)]


def best_by(decision: Decision, key: Callable[[Candidate], Hashable]) -> list[Candidate]:
    """The first candidate of the ranking with each key, in the ranking's order."""
    found: dict[Hashable, Candidate] = {}
    for one in decision.ranking:
        found.setdefault(key(one), one)
    return list(found.values())


def shape(plan: Plan) -> tuple[object, ...]:
    """The features by which a person tells plans apart: not a pipeline's order, nor which worker has one shard more."""
    sliced = tuple(layer for stage in plan.stages for layer, _ in stage.slices)
    return plan_kind(plan), plan.workers, sliced, tuple(stage.first for stage in plan.stages)
