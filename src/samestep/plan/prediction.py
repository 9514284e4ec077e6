"""Prediction of a plan's step, made before it is run and compared with the run. Free of torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PARTS = ("compute", "communication", "bubble", "overhead", "update", "resharding")
"""The parts of a step's time:

    compute        forward and backward of the worker that bounds the step
    communication  its waiting for bytes that nothing hides, and the time of moving them
    bubble         its waiting for other workers
    overhead       fixed costs of a step: messages, agreement, Python between actions
    update         the optimizer
    resharding     bringing rows to slices and back
"""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one plan on one cluster."""

    seconds: float  # per step
    low: float  # nominal 90 % interval
    high: float
    parts: Mapping[str, float]  # seconds by name of PARTS; their sum is `seconds`
    actions: Sequence[Mapping[str, float]]  # per worker: busy seconds per step, by name of the action's class
    wired: int = 0  # bytes per step between hosts

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The first line of a run and of `samestep plan`."""
        return f"{in_ms(self.seconds)} ms per step ({in_ms(self.low)} to {in_ms(self.high)} in nine of ten runs)"

    def split_text(self) -> str:
        return ", ".join(f"{name} {in_ms(self.parts[name])} ms" for name in PARTS if self.parts[name] > 0)

    def graded(self, measured: float) -> str:
        """Prediction, measurement and error on one line."""
        error = self.seconds / measured - 1
        inside = "inside" if self.low <= measured <= self.high else "outside"
        return (
            f"predicted {in_ms(self.seconds)} ms per step, measured {in_ms(measured)} ms: "
            f"{error:+.1%}, {inside} the interval {in_ms(self.low)} to {in_ms(self.high)}"
        )


def in_ms(seconds: float) -> str:
    """Milliseconds with three significant digits."""
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
