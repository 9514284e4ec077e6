"""`samestep verify`: run a plan, one worker and a plain loop for a few steps, and compare them.

one worker, twice      bit for bit the same, or the job does not repeat by itself
the plan               bit for bit the same as one worker
the plain loop         the same up to rounding, which two more runs of it measure
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from samestep.errors import PlanRefused, TrainingFailed
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher
from samestep.plan.plan import Plan, spell
from samestep.verification.causes import Cause
from samestep.verification.job.bit_for_bit import compare_bits
from samestep.verification.job.first_not_finite import not_finite
from samestep.verification.job.up_to_rounding import compare_up_to_rounding
from samestep.verification.job.verdict import Verdict
from samestep.verification.record import Record

STEPS = 3
Say = Callable[[str], None]


def verify_job(request: Request, launcher: Launcher, say: Say = lambda text: None) -> Verdict:
    """Compare a request's runs. Raises Refused when the job or plan cannot be run, TrainingFailed when a run fails."""
    if request.planning.memory_limit is not None or request.planning.device != "cpu":
        raise PlanRefused("verify notes whole models on the CPU: leave --memory-limit and --device out")
    if request.planning.plan == "auto" and not request.planning.plan_is_asked:
        request = request.but(plan="data")  # the pick may be one worker, which proves nothing
    request = request.but(steps=request.training.steps or STEPS, epochs=None)
    assert request.training.steps is not None
    with tempfile.TemporaryDirectory(prefix="samestep-verify-") as name:
        root = Path(name)
        say("planning")
        plan = Plan.parse(str(launcher.outline(request)["plan"]))
        alone = plan.on_one_worker()

        failures: list[TrainingFailed] = []

        def recorded(what: str, one: Plan) -> Record:
            say(what)
            folder = root / what.replace(" ", "-")
            folder.mkdir(mode=0o700)
            try:
                launcher.run(recording_request(request, one, folder))
            except TrainingFailed as error:  # workers may notice themselves that they disagree
                failures.append(error)
            return Record(folder)

        reference = recorded("one worker", alone)
        repeats = compare_bits(recorded("one worker again", alone), reference).finding
        of_plan = recorded("the plan", plan)
        found, nan = compare_bits(of_plan, reference), not_finite(of_plan)
        if failures and repeats is None and found.finding is None and nan is None:
            raise failures[0]
        say("the plain step")
        facts = launcher.plain(recording_request(request, alone, root).but(plan_text=None, plan="data"))
        rough = None
        if facts["by_design"] is None:
            perturbed = [Record(folder) for folder in sorted(root.glob("perturbed-*"))]
            rough = compare_up_to_rounding(reference, Record(root / "plain"), perturbed)
    excused, warnings = excuses(facts)
    finding = None if rough is None or excused or repeats or nan else rough.finding
    if facts["coupled"] is not None and finding is not None:
        finding = replace(finding, cause=Cause.COUPLED_ROWS, why=facts["coupled"])
    return Verdict(
        plan=f"{len(plan.assign)} workers with shards {spell(plan.assign)}"
        + (f" in {len(plan.stages)} stages" if len(plan.stages) > 1 else "")
        + (f", slices {plan.numerics.slices}" if plan.numerics.slices != "none" else ""),
        steps=request.training.steps,
        repeats=repeats
        and replace(repeats, cause=Cause.NOT_DETERMINISTIC, why=f"{repeats.why}, which looks like {repeats.cause}"),
        same_bits=None if repeats is not None else found.finding,
        same_step=finding,
        compared=found.compared,
        furthest=None if rough is None or excused else rough.furthest,
        against_plain=0 if rough is None else rough.compared,
        warnings=warnings,
        not_finite=nan,
    )


def recording_request(request: Request, plan: Plan, folder: Path) -> Request:
    """The request that runs this plan and records its steps in a folder."""
    return request.but(
        plan="plan", plan_text=str(plan), plan_is_asked=True, probe=False, workers=None, assign=None,
        slices=None, hosts=None, numerics=None, record=str(folder), want_weights=False,
    )  # fmt: skip


def excuses(facts: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether the numerics define another step than the plain one, and the warnings about it."""
    warnings = []
    if facts["by_design"] is not None:
        warnings.append(f"not held against the plain step: {facts['by_design']}, which is part of the numerics")
    if facts["draws"]:
        warnings.append(
            "not held against the plain step: forward draws random numbers, every shard its own, and the whole batch "
            "would draw others"
        )
    if facts["batchnorm"]:
        first = facts["batchnorm"][0]
        warnings.append(
            f"not held against the plain step: {first} takes its statistics from a shard; sync_batchnorm=True takes "
            "them from the batch"
        )
    if facts["coupled"] is not None:
        warnings.append(f"the loss couples the rows of a batch, which no sharding keeps: {facts['coupled']}")
    return bool(warnings) and facts["coupled"] is None, warnings
