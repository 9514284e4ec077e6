"""Answers of a leader that is asked for something else than training, as JSON values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from samestep.errors import JobRefused
from samestep.job.job import Job
from samestep.launch.probe.choose_plan import decision_on, profile_for
from samestep.launch.probe.numerics_trials import tune
from samestep.launch.probe.other_cluster import cluster_costs, cluster_of, is_from_description
from samestep.launch.request.request import Mode, Request
from samestep.launch.request.resolve import job_of, numerics_for
from samestep.launch.run.build import build
from samestep.launch.run.plain_run import record_plain
from samestep.launch.run.worker import EventSender
from samestep.numerics import random_streams
from samestep.parallel.lazy_init.lazy_replay import LazyModel, record_factory
from samestep.planner.search.scaling import scaling
from samestep.planner.search.scaling_curve import Scaling
from samestep.planner.search.search import PlanningProblem, SearchSpace
from samestep.setup.named_plans import sliceable
from samestep.setup.plan_check import outline


def plan_outline(request: Request, send: EventSender) -> Any:
    """Fields of the `PlanSummary` of the plan that would be run."""
    run, prepared, _ = build(request, send)
    named = {layer for stage in run.plan.stages for layer, _ in stage.slices}
    reasons = sliceable(run.job, prepared.model, run.plan.numerics.shards) if named else {}
    whole = {layer: reason for layer, reason in reasons.items() if reason is not None and layer not in named}
    found = outline(run.job, run.plan, prepared, whole, run.hosts)
    return asdict(replace(found, grounds=None if run.decision is None else run.decision.as_json()))


def job_profile(request: Request, send: EventSender) -> str | None:
    """Text of the job's profile on this host."""
    job, chosen = job_of(request)
    random_streams.enter(job.seed, "model")
    found = profile_for(request, job, job.build_model(), chosen)
    return None if found is None else found.text()


def candidates(request: Request, send: EventSender) -> list[dict[str, Any]]:
    """Every plan that the planner considers, the best first."""
    job, chosen = job_of(request)
    random_streams.enter(job.seed, "model")
    decision = decision_on(request.but(plan_is_asked=True), job, job.build_model(), chosen)
    return [
        {"name": one.name, "kind": one.kind, "plan": str(one.plan), **decision.prediction_of(one).as_json()}
        for one in decision.ranking
    ]


def simulate_scaling(request: Request, counts: Sequence[int]) -> Scaling:
    """The best plan for each number of workers of a cluster. Raises ClusterRefused or PlanRefused.

    With costs from a description, a model may be larger than this machine's memory: its values are not needed.
    """
    cluster = cluster_of(request).first(max(counts))
    job, chosen = job_of(request)
    numerics = numerics_for(request, job, chosen)
    random_streams.enter(job.seed, "model")
    initial = lazy_model(job) if is_from_description(request, cluster) else None
    model = job.build_model() if initial is None else initial.model
    profile, cluster = cluster_costs(request, job, model, initial, chosen, cluster)
    freedom = SearchSpace(
        (),
        may_slice=request.numerics.slices is not None and numerics.policy is None,
        may_cut=not numerics.sync_batchnorm and numerics.policy is None,
    )
    source = "described" if is_from_description(request, cluster) else "measured on this machine"
    return scaling(PlanningProblem(profile.chain, profile.costs, cluster, numerics), freedom, counts, source)


def lazy_model(job: Job) -> LazyModel | None:
    """The model without memory, however large; None if it exists already or cannot be recorded."""
    if isinstance(job.model, nn.Module):
        return None
    try:
        return record_factory(job.build_model)
    except JobRefused:
        random_streams.enter(job.seed, "model")
        return None


ANSWERS: Mapping[Mode, Callable[[Request, EventSender], Any]] = {
    Mode.OUTLINE: plan_outline,
    Mode.PROFILE: job_profile,
    Mode.CANDIDATES: candidates,
    Mode.TUNE: lambda request, send: asdict(tune(request)),
    Mode.PLAIN: lambda request, send: asdict(record_plain(request)),
    Mode.SCALING: lambda request, send: asdict(simulate_scaling(request, request.counts)),
}
