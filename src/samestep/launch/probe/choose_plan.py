"""`--plan auto`: choose a plan for a request and a job, from a profile.

The planner does not choose numerics: seed, shards, threads and slices stay as they are. Layers are cut only if
`--slices K` allows it, and the plan names them. A number of workers that was asked for is kept.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import psutil
from torch import nn

from samestep.errors import PlanRefused
from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.launch.environment import machine_name
from samestep.launch.probe.measure_job import median
from samestep.launch.probe.probe import Probe, probe
from samestep.launch.probe.profiling import profiled
from samestep.launch.request.request import Mode, Request
from samestep.launch.request.resolve import numerics_for
from samestep.numerics.numerics import Numerics
from samestep.numerics.policy import EXACT, Local, parse_policy
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Host, Link, rounded
from samestep.planner.cost.measured_costs import Passing
from samestep.planner.cost.profile import Profile
from samestep.planner.search.decision import Decision, decide
from samestep.planner.search.search import SearchSpace

SHORT = 100  # steps: a run that is shorter is not worth measuring, unless somebody asked for it
TURNS, SECONDS = 3, 0.8  # of each plan in a run-off; a slow one takes longer
LEAST_STEPS = 3


def pick_plan(request: Request, job: Job, model: nn.Module, chosen: dict[str, Any]) -> tuple[Request, Decision | None]:
    """The request with the chosen plan; without a decision where the default plan is used."""
    if why_no_search(request, job) is not None and not request.planning.probe:
        return request.but(plan="data"), None
    return with_pick(request, decision_on(request, job, model, chosen))


def decision_on(request: Request, job: Job, model: nn.Module, chosen: dict[str, Any]) -> Decision:
    """The decision for this machine. Raises PlanRefused, also for a job that cannot be measured."""
    found = profile_for(request, job, model, chosen)
    if found is None:
        raise PlanRefused(f"no plan is looked for: {why_no_search(request, job)}; name one with --plan")
    most = max_workers(request, numerics_for(request, job, chosen))
    decision = decide_on(request, job, chosen, found, this_machine(found, most))
    return decision.after(run_off(job, model, decision)) if request.planning.probe else decision


def with_pick(request: Request, decision: Decision) -> tuple[Request, Decision]:
    """The request with the plan that a decision picks."""
    plan = str(decision.pick.plan)
    return request.but(plan_text=plan, workers=None, slices=None), decision


def profile_for(request: Request, job: Job, model: nn.Module, chosen: dict[str, Any]) -> Profile | None:
    """The job's profile on this machine; None where no plan is searched."""
    if why_no_search(request, job) is not None:
        return None
    numerics = dataclasses.replace(numerics_for(request, job, chosen), sync=EXACT)  # which changes no action's cost
    most = max_workers(request, numerics)
    # the largest: layers with few outputs have fewer slices
    slices = max(numerics.slice_counts.values(), default=None) or request.numerics.slices
    return profiled(job, model, numerics, most, slices, request.planning.profile, request.source.function)


def decide_on(
    request: Request, job: Job, chosen: dict[str, Any], profile: Profile, cluster: Cluster, counts: Sequence[int] = ()
) -> Decision:
    """Decide on a plan. counts: allowed numbers of workers; default: the request's. Raises PlanRefused."""
    numerics = numerics_for(request, job, chosen)
    freedom = freedom_for(request, cluster.workers, numerics, counts)
    return decide(profile, cluster, numerics, freedom)


def max_workers(request: Request, numerics: Numerics) -> int:
    """Largest number of workers that a plan may use on this machine: as asked for, else limited by cores."""
    if request.planning.workers is not None:
        return request.planning.workers
    most = max(1, request.planning.default_workers // numerics.threads)
    return most if request.numerics.slices is not None else min(most, numerics.shards)


def why_no_search(request: Request, job: Job) -> str | None:
    """Reason why no plan is searched; None where one is."""
    if job.data is None:
        return "the batches come from a loop of the user's own"
    if (
        request.planning.assign is not None
        or request.planning.hosts is not None
        or request.planning.transport == "threads"
        or request.planning.device != "cpu"
    ):
        return "the command says who computes what"
    if request.planning.memory_limit is not None:
        return "the model is made in parts"
    if isinstance(parse_policy(job.sync, "Job.sync"), Local):
        return f"with {job.sync} every logical worker has the whole model"
    if request.planning.plan_is_asked or request.mode is Mode.OUTLINE or request.numerics.slices is not None:
        return None
    steps = job.num_steps(job.row_order(training_rows(job).num_rows))
    return f"{steps} steps are not worth measuring" if steps < SHORT else None


def freedom_for(request: Request, most: int, numerics: Numerics, counts: Sequence[int]) -> SearchSpace:
    may_slice = request.numerics.slices is not None and numerics.policy is None
    counts = tuple(counts) or ((most,) if request.planning.workers is not None else tuple(range(1, most + 1)))
    if not may_slice and max(counts) > numerics.shards:
        raise PlanRefused(
            f"{max(counts)} workers are more than the {numerics.shards} shards of a batch, and a shard is computed by "
            f"one worker: use --workers {numerics.shards}, or --shards {max(counts)} (S is part of the numbers)"
        )
    return SearchSpace(counts, may_slice, may_cut=not numerics.sync_batchnorm and numerics.policy is None)


def this_machine(profile: Profile, workers: int) -> Cluster:
    return Cluster((this_host(workers),), within=within(profile.costs.passing))


def this_host(workers: int) -> Host:
    return Host(machine_name(), psutil.cpu_count() or 1, workers, psutil.virtual_memory().total)


def within(passing: Passing) -> Link:
    """The link that passing tensors between two workers amounts to."""
    per_byte = passing.send_byte + passing.receive_byte
    return Link(rounded(passing.send + passing.receive), rounded(1 / per_byte) if per_byte else 1e10)


def run_off(job: Job, model: nn.Module, decision: Decision) -> dict[str, float]:
    """Median seconds of a step of the best two candidates, by name, for `--probe`. Raises what a worker raised.

    They run in turns, so that costs outside the model count too.
    """
    two = decision.ranking[:2]
    if len(two) < 2:
        return {}
    steps: dict[str, list[float]] = {one.name: [] for one in two}
    for turn in range(TURNS):
        for one in two if turn % 2 == 0 else reversed(two):
            steps[one.name] += steps_of(probe(job, one.plan, model, SECONDS, LEAST_STEPS))
    return {name: median(seconds) for name, seconds in steps.items()}


def steps_of(found: Probe) -> list[float]:
    """Seconds from the begin of each step to that of the next one."""
    begins: dict[int, float] = {}
    for sample in found.samples[0]:
        begins.setdefault(sample.step, sample.start)
    return [b - a for a, b in itertools.pairwise(begins.values())]
