"""`samestep plan --tune-numerics`: run a step in several ways on this machine, and choose its numerics."""

import dataclasses
import os
import statistics
from dataclasses import dataclass
from functools import partial

from torch import nn

from samestep.job.job import Job
from samestep.launch.probe.choose_plan import decision_on
from samestep.launch.probe.measure_job import step_seconds
from samestep.launch.probe.probe import (
    forked,
    probe,
    read_json,
    write_json,
)
from samestep.launch.probe.profiling import refusal
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import chosen_numerics
from samestep.launch.run.build import job_of
from samestep.launch.run.outcome import telling, told
from samestep.numerics import random_streams
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan, equal_shares
from samestep.planner.search.decision import Decision
from samestep.planner.search.numerics_choice import (
    Trial,
    choose_trial,
    trial_settings,
    trial_table,
)
from samestep.setup.named_plans import DEFAULT_SLICES
from samestep.system.processes import die_with_parent

WORTH = 0.02  # by which slices must be predicted to be faster
SECONDS = 0.6  # for one trial; each is made in turn, twice
ROUNDS = 2


@dataclass(frozen=True)
class Tuned:
    """The numerics that were chosen, and why; travels as JSON."""

    line: str
    table: str  # what every choice costs
    plan: str  # the plan's name with these numerics
    seconds: float  # predicted
    slices: str  # what slices would do, in words


def tuned(request: Request) -> Tuned:
    """Measure, and choose S, threads and slices. Raises PlanRefused when the job cannot be measured."""
    job, _ = job_of(request)
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    found = trials(job, model, request.default_workers)
    best = choose_trial(found)
    line = f"shards={best.shards} threads={best.threads}"
    request = dataclasses.replace(
        request, shards=best.shards, threads=best.threads, workers=None, plan_is_asked=True, plan="auto"
    )
    plain = with_slices(request, job, model, None)
    sliced = with_slices(request, job, model, request.slices or DEFAULT_SLICES)
    better = sliced.pick.plan.numerics.slices != "none" and sliced.pick.seconds < plain.pick.seconds * (1 - WORTH)
    decision = sliced if better else plain
    slices = decision.pick.plan.numerics.slices
    words = f"{sliced.pick.name}: {sliced.pick.seconds * 1e3:.3g} ms, without slices {plain.pick.seconds * 1e3:.3g} ms"
    return Tuned(f"{line} slices={slices}", trial_table(found), decision.pick.name, decision.pick.seconds, words)


def with_slices(request: Request, job: Job, model: nn.Module, slices: int | None) -> Decision:
    request = dataclasses.replace(request, slices=slices)
    return decision_on(request, dataclasses.replace(job, shards=request.shards), model, chosen_numerics(request))


def trials(job: Job, model: nn.Module, cores: int) -> list[Trial]:
    """What each way takes; the model is left as it is. Raises PlanRefused when the job cannot be measured."""
    result = os.memfd_create("samestep-trials")
    child = forked(partial(_try, job, model, cores, result))
    os.waitpid(child, 0)
    found = read_json(result)
    if not isinstance(found, list):
        raise refusal(told(found))
    return [Trial(*row) for row in found]


def _try(job: Job, model: nn.Module, cores: int, result: int, parent: int) -> None:
    die_with_parent(parent)
    try:
        best: dict[tuple[int, int, int], float] = {}
        for way in trial_settings(job.batch_size, cores) * ROUNDS:
            best[way] = min(step(job, model, *way), best.get(way, float("inf")))
        write_json(result, [(*way, seconds) for way, seconds in best.items()])
    except BaseException as error:  # noqa: BLE001 - told to who asked
        write_json(result, telling(error, None, None))


def step(job: Job, model: nn.Module, shards: int, workers: int, threads: int) -> float:
    """Seconds of a step: the median of a probe."""
    numerics = Numerics(
        seed=job.seed, shards=shards, threads=threads, precision=job.precision, sync_batchnorm=job.sync_batchnorm
    )
    cut = dataclasses.replace(job, shards=shards)
    found = probe(cut, Plan(numerics, equal_shares(shards, workers)), model, SECONDS, least_steps=3)
    return statistics.median(step_seconds(found.samples[0]))
