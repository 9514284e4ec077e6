"""The verdict of `samestep verify`, as a value and as text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samestep.verification.causes import Finding
from samestep.verification.job.up_to_rounding import RoundingDistance


@dataclass(frozen=True)
class Verdict:
    """Findings for one job and plan."""

    plan: str  # in a few words
    steps: int
    repeats: Finding | None  # where two runs on one worker differ
    same_bits: Finding | None  # where the plan differs from one worker
    same_step: Finding | None  # where one worker differs from the plain step on the whole batch, by more than rounding
    compared: Mapping[str, int]  # values held against one another bit for bit, by kind
    furthest: RoundingDistance | None  # from the plain step, in bounds
    against_plain: int  # values held against the plain step's
    warnings: Sequence[str] = ()
    not_finite: Finding | None = None  # the plan's first NaN or infinity, whether one worker has it too or not

    @property
    def findings(self) -> list[Finding]:
        found = (self.repeats, self.same_bits, self.not_finite, self.same_step)
        return [one for one in found if one is not None]

    @property
    def is_same(self) -> bool:
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        return {"same": self.is_same, **asdict(self)}

    def text(self) -> str:
        total = sum(self.compared.values())
        kinds = ", ".join(f"{count} of {kind}" for kind, count in self.compared.items())
        lines = [f"{self.plan}, {self.steps} steps"]
        if self.repeats is not None:
            lines += [
                "NOT DETERMINISTIC by itself: two runs on one worker differ",
                f"  {self.repeats}",
                "  make the job repeat first: seed what it draws, and keep what it computes out of the process's state",
            ]
        elif self.same_bits is not None:
            lines += ["NOT the same as one worker with the same numerics", f"  {self.same_bits}"]
        else:
            lines += [f"the same as one worker with the same numerics, bit for bit: {total:,} values ({kinds})"]
        if self.not_finite is not None:
            lines += ["NOT FINITE", f"  {self.not_finite}"]
        if self.same_step is not None:
            lines += ["NOT the plain step on the whole batch", f"  {self.same_step}"]
        elif self.furthest is not None:
            one = self.furthest
            lines += [
                f"the plain step on the whole batch up to rounding: {self.against_plain:,} values, the furthest "
                f"{one.kind} {one.name} in step {one.step}: {one.distance:.1e}, where rounding explains {one.bound:.1e}"
            ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])
