"""Judgement of a script's runs by their records: the first difference, and the pattern that it follows.

Checks run in the order in which a step makes its values, since of two differences the earlier one is the cause:

    rows, random stream     data_order.py
    collectives             collective_order.py
    no NaN, no infinity     not_finite_gradients.py
    gradients               gradient_sums.py
    the update              optimizer_updates.py

The first check that finds something ends the step, and the first step in which something is found ends the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import KINDS, Record, Step
from samestep.verification.script import optimizer_updates
from samestep.verification.script.collective_order import ObservedWorker, describe, judge_collectives, order_differs
from samestep.verification.script.data_order import judge_passes, judge_rows, judge_stream
from samestep.verification.script.gradient_sums import judge_accumulation, judge_gradients
from samestep.verification.script.not_finite_gradients import judge_finite
from samestep.verification.script.step_records import Facts, StepRecords


@dataclass(frozen=True)
class ScriptRecords:
    """Records of all runs of a script, and what was observed of its workers."""

    workers: Record
    reference: Record
    again: Record
    perturbed: Record
    facts: tuple[Facts, ...]
    observed: tuple[ObservedWorker, ...]


def judge(runs: ScriptRecords) -> tuple[list[Finding], int]:
    """The findings of the first step that has any, and how many tensors were compared."""
    compared = 0
    for step in runs.reference.steps():
        found = not_deterministic(step, runs.reference.of(step), runs.again.of(step))
        if found is not None:
            return [found], compared
    findings: list[Finding] = []
    earlier: list[tuple[int, Step]] = []
    for step in runs.reference.steps():
        view = StepRecords(step, runs.workers.of(step), runs.reference.of(step), runs.perturbed.of(step), runs.facts)
        if not view.workers:
            break
        compared += sum(len(each) for each in view.workers.values())
        findings = judge_step(view, earlier, runs.observed)
        if findings:
            break
        earlier.append((step, view.workers))
    whole_run = judge_passes(runs.facts)
    if whole_run is not None and not any(f.cause is Cause.DATA_ORDER for f in findings):
        findings.append(whole_run)
    return findings, compared


def not_deterministic(step: int, one: Step, other: Step) -> Finding | None:
    """The first bits in which two runs on one process differ: no other run can be compared with either."""
    for key in sorted(one, key=lambda key: KINDS.index(key.kind)):
        digests = [[noted.digest for noted in run.get(key, [])] for run in (one, other)]
        if digests[0] != digests[1]:
            why = "two runs of the script on one process differ here already; seed it, or use deterministic kernels"
            return Finding(Cause.NOT_DETERMINISTIC, step, key.kind, key.name, why)
    return None


def judge_step(
    view: StepRecords, earlier: Sequence[tuple[int, Step]], observed: Sequence[ObservedWorker]
) -> list[Finding]:
    """The finding of the first check that has one, in causal order."""
    found = (
        judge_rows(view, earlier)
        or judge_stream(view)
        or judge_collectives(view.step, observed)
        or judge_finite(view)
        or optimizer_updates.judge_membership(view)
        or judge_accumulation(view)
        or judge_gradients(view)
        or optimizer_updates.judge_clip(view)
        or optimizer_updates.judge_settings(view, earlier)
        or optimizer_updates.judge_unchanged(view)
        or optimizer_updates.judge_state(view)
    )
    return [found] if found else []


def judge_stopped(observed: Sequence[ObservedWorker], timeout: float) -> Finding:
    """The reason why workers failed, or did not end."""
    found = order_differs({one.rank: one.collectives for one in observed})
    if found is not None:
        return found
    crashed = next((one for one in observed if one.failed and not one.killed), None)
    step = max((call[0] for one in observed for call in one.collectives), default=0)
    if crashed is not None:
        why = f"worker {crashed.rank} ended with {crashed.status}: " + " / ".join(crashed.last_lines[-2:])
        return Finding(Cause.UNKNOWN, step, "collective", "", why, worker=crashed.rank)
    where = "; ".join(
        f"worker {one.rank} {'ended' if not one.failed else 'is in ' + location(one)}" for one in observed
    )
    stuck = next((one.rank for one in observed if one.failed and not one.in_collective), None)
    return Finding(Cause.HANG, step, "collective", "", f"after {timeout:g} s {where}", worker=stuck)


def location(one: ObservedWorker) -> str:
    """The place of a worker: a collective, or the innermost line that is neither torch's nor ours."""
    if one.in_collective and one.collectives:
        return describe(one.collectives[-1])
    lines = [line.strip() for line in one.stack.splitlines() if line.strip().startswith("File")]
    foreign = ("/torch/", "samestep/verification", "<frozen")
    own = [line for line in lines if not any(part in line for part in foreign)]
    return (own or lines or ["a place that left no stack"])[0]
