"""`samestep simulate`: the best plan for many numbers of workers of a cluster.

From a description, a model may be larger than this machine's memory: nobody asks for its values.
"""

from collections.abc import Sequence

from torch import nn

from samestep import streams
from samestep.consistency.policy import EXACT
from samestep.errors import JobRefused
from samestep.job import Job
from samestep.launch.build import job_of
from samestep.launch.deciding import numerics_for
from samestep.launch.elsewhere import cluster_of, costs_elsewhere, is_from_description
from samestep.launch.request import Request
from samestep.parallel.initial import Recording, record
from samestep.planner.curve import Scaling
from samestep.planner.scaling import scaling
from samestep.planner.search import Freedom


def simulated(request: Request, counts: Sequence[int]) -> Scaling:
    """The best plan for each number of workers. Raises ClusterRefused or PlanRefused."""
    cluster = cluster_of(request).first(max(counts))
    job, chosen = job_of(request)
    numerics = numerics_for(request, job, chosen)
    streams.enter(job.seed, "model")
    initial = unmade(job) if is_from_description(request, cluster) else None
    model = job.build_model() if initial is None else initial.model
    profile, cluster = costs_elsewhere(request, job, model, initial, chosen, cluster)
    freedom = Freedom(
        (),
        may_slice=request.slices is not None and numerics.sync == EXACT,
        may_cut=not numerics.sync_batchnorm and numerics.sync == EXACT,
    )
    source = "described" if is_from_description(request, cluster) else "measured on this machine"
    return scaling(profile.chain, profile.costs, cluster, numerics, freedom, counts, source)


def unmade(job: Job) -> Recording | None:
    """The model without memory, however large it is; None where it exists already or cannot be written down."""
    if isinstance(job.model, nn.Module):
        return None
    try:
        return record(job.build_model)
    except JobRefused:
        streams.enter(job.seed, "model")
        return None
