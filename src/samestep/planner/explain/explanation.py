"""Explanation of a decision: the pick, the runners-up, the layers one by one, and what would flip the choice.

It is made from a `Decision` alone; nothing is measured here.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from samestep.plan.prediction import Prediction, in_ms
from samestep.planner.explain.flips import Flip, flips, gain_of_slices
from samestep.planner.explain.layer_choices import LayerChoice, layer_choices
from samestep.planner.explain.plan_comparison import Comparison, runners_up
from samestep.planner.search.decision import Decision

TUNE = "other shards and threads are not known without measuring: `samestep plan --tune-numerics` does"


@dataclass(frozen=True)
class Explanation:
    """The explanation that `samestep plan` prints."""

    name: str
    kind: str
    prediction: Prediction
    runners_up: tuple[Comparison, ...]
    layers: tuple[LayerChoice, ...]
    flips: tuple[Flip, ...]
    numerics: tuple[str, ...]  # gains of other numerics
    measured: tuple[str, ...] = ()  # times of short runs of two plans

    def text(self) -> str:
        lines = [f"{self.name}: {self.prediction.text()}", f"  {self.prediction.split_text()}"]
        for title, found in self.sections().items():
            if found:
                lines += ["", f"{title}:", *(f"  {line}" for line in found)]
        return "\n".join(lines)

    def sections(self) -> dict[str, list[str]]:
        """Lines by the title of their section."""
        return {
            "short runs": list(self.measured),
            "runners-up": [one.text() for one in self.runners_up],
            "layers": [line.text() for line in self.layers],
            "what would flip the choice": [flip.text for flip in self.flips],
            "other numerics": list(self.numerics),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "prediction": self.prediction.as_json(),
            "runners_up": list(map(asdict, self.runners_up)),
            "layers": list(map(asdict, self.layers)),
            "flips": list(map(asdict, self.flips)),
            "numerics": list(self.numerics),
            "measured": list(self.measured),
        }


def explain(decision: Decision) -> Explanation:
    slices = gain_of_slices(decision)
    return Explanation(
        decision.pick.name,
        decision.pick.kind,
        decision.prediction,
        tuple(runners_up(decision)),
        tuple(layer_choices(decision)),
        tuple(flips(decision)),
        (*([slices] if slices else []), TUNE),
        tuple(short_runs(decision)),
    )


def short_runs(decision: Decision) -> Iterator[str]:
    """Measured beside predicted time of each candidate that was run."""
    for one in decision.ranking:
        if (seconds := decision.measured.get(one.name)) is not None:
            yield f"{one.name}: {in_ms(seconds)} ms, predicted {in_ms(one.seconds)} ms"
