"""`samestep simulate`: the best plan for many numbers of workers of a cluster.

With costs from a description, a model may be larger than this machine's memory: its values are not needed.
"""

from collections.abc import Sequence

from torch import nn

from samestep.errors import JobRefused
from samestep.job.job import Job
from samestep.launch.probe.choose_plan import numerics_for
from samestep.launch.probe.other_cluster import cluster_costs, cluster_of, is_from_description
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import job_of
from samestep.numerics import random_streams
from samestep.parallel.lazy_init.lazy_replay import LazyModel, record_factory
from samestep.planner.search.scaling import scaling
from samestep.planner.search.scaling_curve import Scaling
from samestep.planner.search.search import PlanningProblem, SearchSpace


def simulate_scaling(request: Request, counts: Sequence[int]) -> Scaling:
    """The best plan for each number of workers. Raises ClusterRefused or PlanRefused."""
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
