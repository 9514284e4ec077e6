"""The planner's decision: the ranked candidates, and everything that the ranking depends on. Values only."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics, parse_line
from samestep.plan.cluster import Cluster
from samestep.plan.prediction import Prediction
from samestep.planner.cost.confidence import interval
from samestep.planner.cost.profile import Profile
from samestep.planner.search.partition import partition
from samestep.planner.search.search import (
    TIE,
    Candidate,
    PlanningProblem,
    SearchSpace,
    layer_costs,
    replication_of,
    search,
    worker_row,
)
from samestep.planner.search.stage_costs import NothingFits
from samestep.system.json_values import value_from


@dataclass(frozen=True)
class Decision:
    """Ranked candidates, the best first, with the inputs of the search."""

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
    def problem(self) -> PlanningProblem:
        return PlanningProblem(self.profile.chain, self.profile.costs, self.cluster, self.numerics)

    @property
    def prediction(self) -> Prediction:
        return self.prediction_of(self.pick)

    def prediction_of(self, one: Candidate) -> Prediction:
        low, high = interval(one.seconds, one.kind, self.profile.costs.together.spread)
        found = one.estimate
        return Prediction(one.seconds, low, high, found.parts, list(found.actions), found.wired)

    def after(self, measured: Mapping[str, float]) -> "Decision":
        """The decision after two candidates were run: the faster one comes first; a tie leaves the order."""
        ran = [one for one in self.ranking if one.name in measured]
        if len(ran) == 2 and measured[ran[1].name] < measured[ran[0].name] * (1 - TIE):
            ran.reverse()
        others = [one for one in self.ranking if one not in ran]
        return replace(self, ranking=(*ran, *others), measured=dict(measured))

    def as_json(self) -> dict[str, Any]:
        """The inputs of the search. It is deterministic, so these are enough to repeat the decision."""
        return {
            "profile": self.profile.text(),
            "cluster": str(self.cluster),
            "numerics": self.numerics.line(),
            "freedom": asdict(self.freedom),
            "measured": dict(self.measured),
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Decision":
        decision = decide(
            Profile.parse(found["profile"], "the profile"),
            Cluster.parse(found["cluster"]),
            Numerics(**parse_line(found["numerics"])),  # type: ignore[arg-type]
            value_from(SearchSpace, found["freedom"]),
        )
        return decision.after(found["measured"]) if found["measured"] else decision


def decide(profile: Profile, cluster: Cluster, numerics: Numerics, freedom: SearchSpace) -> Decision:
    """Search, and keep the inputs. Raises PlanRefused, with the smallest change that helps, when there is no plan."""
    problem = PlanningProblem(profile.chain, profile.costs, cluster, numerics)
    try:
        ranking = search(problem, freedom)
    except PlanRefused as refused:
        change = smallest_change(problem, freedom)
        raise PlanRefused("; ".join(filter(None, (str(refused), change)))) from None
    return Decision(profile, cluster, numerics, freedom, tuple(ranking))


def smallest_change(problem: PlanningProblem, freedom: SearchSpace) -> str:
    """The smallest change with which there is a plan, as a sentence; empty where none is known."""
    chain, fewest = problem.chain, min(freedom.workers)
    if freedom.may_cut and chain.why_uncut is None and len(chain.units) > 1 and fewest > 1:
        here = problem.on_first(fewest)
        found = partition(layer_costs(here), worker_row(here, freedom), chain.shards, replication_of(here))
        if isinstance(found, NothingFits):
            return str(found)
    if fewest > chain.shards:
        return f"the smallest change is --workers {chain.shards}: more workers than shards need stages or slices"
    return ""
