"""Costs and plans for a cluster other than this machine.

    costs     measured here, the cluster's speeds being relative to this machine
              or from FLOPs and bytes, where the cluster says what its hosts do in a second

The numerics stay as they are.
"""

import copy
from typing import Any

from torch import nn

from samestep.errors import PlanRefused
from samestep.job.job import Job
from samestep.launch.probe.choose_plan import decide_on, profile_for, why_no_search, with_pick
from samestep.launch.probe.profiling import ground_of
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import numerics_for
from samestep.parallel.lazy_init.lazy_replay import LazyModel
from samestep.plan.cluster import Cluster
from samestep.planner.cost.profile import Profile
from samestep.planner.cost.roofline import is_described, roofline_costs, with_roofline_speeds
from samestep.planner.search.decision import Decision
from samestep.planner.search.scaling import doubling
from samestep.setup.network_measurements import survey
from samestep.setup.parallelize import prepare


def pick_plan_for_cluster(
    request: Request, job: Job, model: nn.Module, chosen: dict[str, Any]
) -> tuple[Request, Decision]:
    """The request with the plan for its cluster. Raises ClusterRefused or PlanRefused."""
    numerics = numerics_for(request, job, chosen)
    cluster = cluster_of(request)
    cluster = cluster if request.planning.workers is None else cluster.first(request.planning.workers)
    profile, cluster = cluster_costs(request, job, model, None, chosen, cluster)
    most = cluster.workers if request.numerics.slices is not None else min(cluster.workers, numerics.shards)
    counts = (cluster.workers,) if request.planning.workers is not None else doubling(most)
    return with_pick(request, decide_on(request, job, chosen, profile, cluster, counts))


def cluster_of(request: Request) -> Cluster:
    assert request.planning.cluster is not None, "the command has read it"
    return Cluster.parse(request.planning.cluster, "--cluster")


def is_from_description(request: Request, cluster: Cluster) -> bool:
    return request.planning.described or (request.planning.profile is None and is_described(cluster))


def cluster_costs(
    request: Request, job: Job, model: nn.Module, initial: LazyModel | None, chosen: dict[str, Any], cluster: Cluster
) -> tuple[Profile, Cluster]:
    """The profile, and the cluster with speeds relative to it. Raises PlanRefused."""
    asked = request.but(plan_is_asked=True, workers=None)
    if (why := why_no_search(asked, job)) is not None:
        raise PlanRefused(f"no plan can be found for a cluster: {why}")
    if not is_from_description(request, cluster):
        measured = profile_for(asked, job, model, chosen)
        assert measured is not None, "it was asked for"
        return measured, cluster
    numerics = numerics_for(request, job, chosen)
    prepared = prepare(job, copy.deepcopy(model) if initial is None else model, initial)
    chain = survey(job, prepared, request.numerics.slices)
    clips = job.clip_grad_norm is not None
    costs = roofline_costs(chain, cluster, numerics.threads, clips=clips)
    found = Profile(ground_of(job, prepared, numerics, costs.together.workers), chain, costs, request.source.function)
    return found, with_roofline_speeds(chain, cluster, numerics.threads)
