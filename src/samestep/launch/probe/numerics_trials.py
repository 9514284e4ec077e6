"""`samestep plan --tune-numerics`: run a step with several numerics on this machine, and choose the fastest."""

import dataclasses
import statistics
from dataclasses import dataclass
from functools import partial

from torch import nn

from samestep.job.job import Job
from samestep.launch.failure import error_from
from samestep.launch.probe.children import in_child
from samestep.launch.probe.choose_plan import decision_on
from samestep.launch.probe.measure_job import step_seconds
from samestep.launch.probe.probe import probe
from samestep.launch.probe.profiling import refusal
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import chosen_numerics, job_of
from samestep.numerics import random_streams
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan, equal_shares
from samestep.planner.search.decision import Decision
from samestep.planner.search.numerics_choice import Trial, choose_trial, trial_settings, trial_table
from samestep.setup.named_plans import DEFAULT_SLICES

MIN_GAIN = 0.02  # by which slices must be predicted to be faster
SECONDS = 0.6  # of one trial; all are made in turn, twice
ROUNDS = 2


@dataclass(frozen=True)
class Tuned:
    """Chosen numerics and the reasons; travels as JSON."""

    line: str
    table: str  # cost of each choice
    plan: str  # the plan's name with these numerics
    seconds: float  # predicted
    slices: str  # effect of slices, in words


def tune(request: Request) -> Tuned:
    """Measure, and choose shards, threads and slices. Raises PlanRefused when the job cannot be measured."""
    job, _ = job_of(request)
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    found = trials(job, model, request.planning.default_workers)
    best = choose_trial(found)
    line = f"shards={best.shards} threads={best.threads}"
    request = request.but(shards=best.shards, threads=best.threads, workers=None, plan_is_asked=True, plan="auto")
    plain = with_slices(request, job, model, None)
    sliced = with_slices(request, job, model, request.numerics.slices or DEFAULT_SLICES)
    better = sliced.pick.plan.numerics.slices != "none" and sliced.pick.seconds < plain.pick.seconds * (1 - MIN_GAIN)
    decision = sliced if better else plain
    slices = decision.pick.plan.numerics.slices
    words = f"{sliced.pick.name}: {sliced.pick.seconds * 1e3:.3g} ms, without slices {plain.pick.seconds * 1e3:.3g} ms"
    return Tuned(f"{line} slices={slices}", trial_table(found), decision.pick.name, decision.pick.seconds, words)


def with_slices(request: Request, job: Job, model: nn.Module, slices: int | None) -> Decision:
    request = request.but(slices=slices)
    return decision_on(
        request, dataclasses.replace(job, shards=request.numerics.shards), model, chosen_numerics(request)
    )


def trials(job: Job, model: nn.Module, cores: int) -> list[Trial]:
    """Seconds of a step with each numerics; the model stays as it is. Raises PlanRefused when it cannot be measured."""
    found = in_child(partial(_try, job, model, cores))
    if not isinstance(found, list):
        raise refusal(error_from(found))
    return [Trial(*row) for row in found]


def _try(job: Job, model: nn.Module, cores: int) -> list[tuple[int | float, ...]]:
    best: dict[tuple[int, int, int], float] = {}
    for way in trial_settings(job.batch_size, cores) * ROUNDS:
        best[way] = min(step_time(job, model, *way), best.get(way, float("inf")))
    return [(*way, seconds) for way, seconds in best.items()]


def step_time(job: Job, model: nn.Module, shards: int, workers: int, threads: int) -> float:
    """Median seconds of a step in a probe."""
    numerics = Numerics(
        seed=job.seed, shards=shards, threads=threads, precision=job.precision, sync_batchnorm=job.sync_batchnorm
    )
    cut = dataclasses.replace(job, shards=shards)
    found = probe(cut, Plan(numerics, equal_shares(shards, workers)), model, SECONDS, least_steps=3)
    return statistics.median(step_seconds(found.samples[0]))
