"""What the records of a script's runs say: the first difference, and the pattern it follows.

In the order in which a step makes its values, because of two differences the earlier one is the cause:

    rows, random stream     drawn_rows.py
    collectives             collective_order.py
    no NaN, no infinity     not_finite_gradients.py
    gradients               gradient_sums.py
    the update              optimizer_updates.py

The first check that finds something ends the step, and the first step in which something is found ends the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import KINDS, Key, Record
from samestep.verification.script.collective_order import (
    ObservedWorker,
    judge_collectives,
    order_differs,
    said,
)
from samestep.verification.script.drawn_rows import judge_passes, judge_rows, judge_stream
from samestep.verification.script.gradient_sums import judge_accumulation, judge_gradients
from samestep.verification.script.not_finite_gradients import judge_finite
from samestep.verification.script.optimizer_updates import (
    judge_clip,
    judge_membership,
    judge_settings,
    judge_state,
    judge_unchanged,
)
from samestep.verification.script.step_view import Facts, Step, View


@dataclass(frozen=True)
class ScriptRecords:
    workers: Record
    reference: Record
    again: Record
    perturbed: Record
    facts: tuple[Facts, ...]
    seen: tuple[ObservedWorker, ...]


def judge(runs: ScriptRecords) -> tuple[list[Finding], int]:
    """The findings of the first step that has any, and how many tensors were compared."""
    compared = 0
    for step in runs.reference.steps():
        reference, again = runs.reference.of(step), runs.again.of(step)
        found = not_deterministic(step, reference, again)
        if found is not None:
            return [found], compared
    findings: list[Finding] = []
    earlier: list[tuple[int, Step]] = []
    for step in runs.reference.steps():
        view = View(step, runs.workers.of(step), runs.reference.of(step), runs.perturbed.of(step), runs.facts)
        if not view.workers:
            break
        compared += sum(len(each) for each in view.workers.values())
        findings = judge_step(view, earlier, runs.seen)
        if findings:
            break
        earlier.append((step, view.workers))
    whole_run = judge_passes(runs.facts)
    if whole_run is not None and not any(f.cause is Cause.DATA_ORDER for f in findings):
        findings.append(whole_run)
    return findings, compared


def not_deterministic(step: int, one: Step, other: Step) -> Finding | None:
    """Two runs on one process that have other bits: nothing can be held against either."""
    for key in sorted(one, key=causal_order):
        digests = [[noted.digest for noted in run.get(key, [])] for run in (one, other)]
        if digests[0] != digests[1]:
            why = "two runs of the script on one process differ here already; seed it, or use deterministic kernels"
            return Finding(Cause.NOT_DETERMINISTIC, step, key.kind, key.name, why)
    return None


def causal_order(key: Key) -> int:
    return KINDS.index(key.kind)


def judge_step(view: View, earlier: Sequence[tuple[int, Step]], seen: Sequence[ObservedWorker]) -> list[Finding]:
    """In causal order; the first check that finds something ends it."""
    found = (
        judge_rows(view, earlier)
        or judge_stream(view)
        or judge_collectives(view.step, seen)
        or judge_finite(view)
        or judge_membership(view)
        or judge_accumulation(view)
        or judge_gradients(view)
        or judge_clip(view)
        or judge_settings(view, earlier)
        or judge_unchanged(view)
        or judge_state(view)
    )
    return [found] if found else []


def judge_stopped(seen: Sequence[ObservedWorker], timeout: float) -> Finding:
    """Workers that failed, or did not end."""
    found = order_differs({one.rank: one.collectives for one in seen})
    if found is not None:
        return found
    crashed = next((one for one in seen if one.failed and not one.killed), None)
    step = max((call[0] for one in seen for call in one.collectives), default=0)
    if crashed is not None:
        why = f"worker {crashed.rank} ended with {crashed.status}: " + " / ".join(crashed.said[-2:])
        return Finding(Cause.UNKNOWN, step, "collective", "", why, worker=crashed.rank)
    where = "; ".join(f"worker {one.rank} {'ended' if not one.failed else 'is in ' + standing(one)}" for one in seen)
    stuck = next((one.rank for one in seen if one.failed and not one.inside), None)
    return Finding(Cause.HANG, step, "collective", "", f"after {timeout:g} s {where}", worker=stuck)


def standing(one: ObservedWorker) -> str:
    """Where a worker is: in a collective, or at the innermost line that is neither torch's nor ours."""
    if one.inside and one.collectives:
        return said(one.collectives[-1])
    lines = [line.strip() for line in one.stack.splitlines() if line.strip().startswith("File")]
    own = [
        line
        for line in lines
        if "/torch/" not in line and "samestep/verification" not in line and "<frozen" not in line
    ]
    return (own or lines or ["a place that left no stack"])[0]
