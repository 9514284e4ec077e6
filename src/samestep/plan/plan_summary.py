"""A plan in words: what every worker computes and keeps, the bytes that move, and the schedule drawn.

Free of torch: the command prints it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlanSummary:
    """The text and the numbers that `samestep plan` shows."""

    plan: str
    whole: Mapping[str, str]  # layers that a named plan could not slice, and why
    parameters: Sequence[int]  # bytes of parameters that each worker computes with
    updated: Sequence[int]  # bytes of parameters that each worker updates
    moved: Mapping[str, int]  # bytes of tensors per step with a full batch, by cause
    wired: Mapping[str, int]  # the part of them between hosts
    memory: Sequence[Mapping[str, int]]  # bytes that each worker needs, by purpose
    drawing: str
    svg: str
    grounds: Mapping[str, Any] | None = None  # of the planner's decision, as JSON; None where the plan was given
    uncounted: str = ""  # why the memory is not known; empty where it is

    def text(self, *, draw: bool) -> str:
        lines = [self.plan]
        if self.whole:
            lines += ["left whole:", *(f"  {layer}: {reason}" for layer, reason in self.whole.items()), ""]
        needs = [f"; needs {in_all(memory)}" for memory in self.memory] or [""] * len(self.parameters)
        lines += [
            f"worker {rank}: computes with {mega(used)} of parameters, updates {mega(own)}{needed}"
            for rank, (used, own, needed) in enumerate(zip(self.parameters, self.updated, needs, strict=True))
        ]
        if self.uncounted:
            lines.append(f"memory not counted: {self.uncounted}")
        lines.append(f"moved per step: {by_cause(self.moved)}")
        if any(self.wired.values()):
            lines.append(f"of that between hosts: {by_cause(self.wired)}")
        return "\n".join([*lines, "", self.drawing] if draw else lines)


def in_all(memory: Mapping[str, int]) -> str:
    return f"{mega(sum(memory.values()))} ({', '.join(f'{what} {mega(n)}' for what, n in memory.items())})"


def by_cause(nbytes: Mapping[str, int]) -> str:
    causes = ", ".join(f"{cause} {mega(count)}" for cause, count in nbytes.items())
    return f"{mega(sum(nbytes.values()))} ({causes})"


def mega(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"
