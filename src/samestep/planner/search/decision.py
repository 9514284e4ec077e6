"""What the planner decided: the ranked candidates, and on what it stood. All of it values; nothing was run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics, parse_line
from samestep.plan.cluster import Cluster
from samestep.plan.prediction import Prediction
from samestep.planner.cost.confidence import interval
from samestep.planner.cost.profile import Profile
from samestep.planner.search.search import TIE, Candidate, SearchSpace, search
from samestep.planner.search.smallest_change import smallest_change


@dataclass(frozen=True)
class Decision:
    """The best candidate comes first."""

    profile: Profile
    cluster: Cluster
    numerics: Numerics
    freedom: SearchSpace
    ranking: tuple[Candidate, ...]
    measured: Mapping[str, float] = field(default_factory=dict)  # seconds of candidates that were run, by name

    @property
    def pick(self) -> Candidate:
        return self.ranking[0]

    @property
    def prediction(self) -> Prediction:
        return self.prediction_of(self.pick)

    def prediction_of(self, one: Candidate) -> Prediction:
        low, high = interval(one.seconds, one.kind, self.profile.costs.together.spread)
        found = one.estimate
        return Prediction(one.seconds, low, high, found.parts, list(found.actions), found.wired)

    def after(self, measured: Mapping[str, float]) -> "Decision":
        """With two candidates run: the faster one first, but for a tie, in which the order stays."""
        ran = [one for one in self.ranking if one.name in measured]
        if len(ran) == 2 and measured[ran[1].name] < measured[ran[0].name] * (1 - TIE):
            ran.reverse()
        others = [one for one in self.ranking if one not in ran]
        return replace(self, ranking=(*ran, *others), measured=dict(measured))

    def as_json(self) -> dict[str, Any]:
        """All that it stood on. The search is deterministic: whoever has this has the decision."""
        return {
            "profile": self.profile.text(),
            "cluster": str(self.cluster),
            "numerics": self.numerics.line(),
            "freedom": asdict(self.freedom),
            "measured": dict(self.measured),
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Decision":
        freedom = SearchSpace(**{**found["freedom"], "workers": tuple(found["freedom"]["workers"])})
        decision = decide(
            Profile.parse(found["profile"], "the profile"),
            Cluster.parse(found["cluster"]),
            Numerics(**parse_line(found["numerics"])),  # type: ignore[arg-type]
            freedom,
        )
        return decision.after(found["measured"]) if found["measured"] else decision


def decide(profile: Profile, cluster: Cluster, numerics: Numerics, freedom: SearchSpace) -> Decision:
    """Raises PlanRefused, with the smallest change that helps, when no plan can be found."""
    try:
        ranking = search(profile.chain, profile.costs, cluster, numerics, freedom)
    except PlanRefused as refused:
        change = smallest_change(profile.chain, profile.costs, cluster, freedom)
        raise PlanRefused("; ".join(filter(None, (str(refused), change)))) from None
    return Decision(profile, cluster, numerics, freedom, tuple(ranking))
