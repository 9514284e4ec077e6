"""What the planner says a plan will do, before it is run; a run is graded by it. Free of torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PARTS = ("compute", "communication", "bubble", "overhead", "update", "resharding")
"""Into what a step's time is split:

    compute        forward and backward of the worker that bounds the step
    communication  what it waits for bytes that nothing hides, and what moving them costs it
    bubble         what it waits for other workers
    overhead       what a step costs whatever is in it: messages, agreement, Python between actions
    update         the optimizer
    resharding     bringing rows to slices and back
"""


@dataclass(frozen=True)
class Prediction:
    """Of one plan on one cluster."""

    seconds: float  # per step
    low: float  # nominal 90 % interval
    high: float
    parts: Mapping[str, float]  # seconds by name of PARTS; their sum is `seconds`
    actions: Sequence[Mapping[str, float]]  # per worker: busy seconds per step, by name of the action's class
    wired: int = 0  # bytes per step that go from host to host

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The line that a run and `samestep plan` begin with."""
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
