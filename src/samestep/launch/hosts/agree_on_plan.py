"""Workers on several hosts come to one plan: each host measures itself, the links between them are measured, and
everybody decides the same from all of it.

    host a: worker 0   a fork server of its own measures the job    \\
    host b: worker 2   the same, at the same time                    > the run's store > everybody decides
    0 <--> 2           bytes there and back at once                 /

Deciding is deterministic, so nobody has to tell the plan.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import torch

from samestep.errors import PlanRefused, SamestepError, TrainingFailed
from samestep.job.job import Job
from samestep.launch.environment import building
from samestep.launch.hosts.membership import A_WORD, Membership, in_time
from samestep.launch.probe.choose_plan import (
    decide_on,
    reason_to_leave,
    settled,
    this_host,
    within,
)
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import job_of
from samestep.launch.run.launcher import Launcher
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Link, rounded
from samestep.planner.cost.profile import Profile
from samestep.planner.search.decision import Decision
from samestep.transport.links import Links

PROBING = 120.0  # seconds within which every host must have measured itself
LARGE, ROUNDS = 4 << 20, 4  # bytes of a message that measures bandwidth, and how many


def agreed(
    membership: Membership, request: Request, links: Callable[[], Links | None]
) -> tuple[Request, Decision | None, Job]:
    """The request with the plan that all workers come to; and the job, made once. All workers must call it.

    links: connects all workers; None where they are on one host. Raises Refused.
    """
    decision, job = decision_together(membership, request, links)
    if decision is None:
        return request.but(plan="data"), None, job
    return *settled(request, decision), job


def decision_together(
    membership: Membership, request: Request, links: Callable[[], Links | None]
) -> tuple[Decision | None, Job]:
    """None where no plan is looked for. Raises Refused."""
    try:
        with building():
            job, chosen = job_of(request)
    except BaseException as error:
        tell_no_job(membership, error)
        raise
    if request.planning.probe:
        raise PlanRefused("--probe runs plans by itself, and a launcher has started these workers: leave it out")
    if reason_to_leave(request, job) is not None:
        return None, job
    profiles = tell_profiles(membership, request.but(plan_is_asked=True))
    connected = links()
    between = None if connected is None else link_between(membership, connected)
    cluster = cluster_of(profiles, membership.hosts, between)
    return decide_on(request, job, chosen, profiles[0], cluster, (cluster.workers,)), job


def tell_no_job(membership: Membership, error: BaseException) -> None:
    """Nobody needs to wait for profiles: this worker has no job to measure."""
    reason = f"{membership.name(membership.world.rank)} could not begin: {type(error).__name__}: {error}"
    for host in range(1 + max(membership.hosts)):
        membership.store.set(f"profile {host}", json.dumps({"failed": reason}))


def tell_profiles(membership: Membership, request: Request) -> list[Profile]:
    """Every host's profile; the first worker of each host has it measured. Raises PlanRefused where one cannot."""
    store, near = membership.store, membership.near
    number = membership.hosts[membership.world.rank]
    if membership.world.rank == near[0]:
        store.set(f"profile {number}", json.dumps(measured_here(request.but(workers=len(near), hosts=None))))
    names = [f"profile {host}" for host in range(1 + max(membership.hosts))]
    limit = membership.timeout + PROBING
    in_time(lambda: store.wait(names, timedelta(seconds=limit)), limit + A_WORD)
    found = [json.loads(store.get(name)) for name in names]
    for host, one in enumerate(found):
        if "failed" in one:
            raise TrainingFailed(one["failed"])
        if "error" in one:
            raise PlanRefused(f"{membership.name(membership.hosts.index(host))}: {one['error']}")
    return [Profile.parse(one["profile"], f"the profile of host {host}") for host, one in enumerate(found)]


def measured_here(request: Request) -> dict[str, str]:
    """The profile, or why there is none: the others wait for either."""
    try:
        with Launcher() as launcher:
            found = launcher.profile(request)
    except SamestepError as error:
        return {"error": str(error)}
    return {"profile": found} if found is not None else {"error": "it finds no reason to measure the job"}


def link_between(membership: Membership, links: Links) -> Link:
    """The slowest link from a host to the next one, all of them busy in both directions at once."""
    first = [membership.hosts.index(host) for host in range(1 + max(membership.hosts))]
    rank, store = membership.world.rank, membership.store
    if rank in first:
        place = first.index(rank)
        found = measured(links, first[(place + 1) % len(first)], first[place - 1])
        store.set(f"link {place}", json.dumps(found))
    names = [f"link {place}" for place in range(len(first))]
    in_time(lambda: store.wait(names, timedelta(seconds=PROBING)), PROBING + A_WORD)
    all_found = [json.loads(store.get(name)) for name in names]
    latency, bandwidth = max(f[0] for f in all_found), min(f[1] for f in all_found)
    return Link(rounded(latency), rounded(bandwidth))


def measured(links: Links, following: int, before: int) -> tuple[float, float]:
    """Seconds of a message of a few bytes, and bytes/s of large ones, both ways at once."""
    small, large = _turns(links, following, before, 64), _turns(links, following, before, LARGE)
    return small, LARGE / max(large - small, 1e-9)


def _turns(links: Links, following: int, before: int, nbytes: int) -> float:
    outgoing, incoming = torch.zeros(nbytes, dtype=torch.uint8), torch.empty(nbytes, dtype=torch.uint8)
    seconds = []
    for tag in range(1 + ROUNDS):
        began = time.perf_counter()
        expected = links.expect(incoming, before, tag)
        links.post(outgoing, following, tag).wait()
        expected.wait()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def cluster_of(profiles: Sequence[Profile], hosts: Sequence[int], between: Link | None) -> Cluster:
    """Hosts by what was measured on them: the first one's speed is 1."""
    found = []
    for number, profile in enumerate(profiles):
        workers = hosts.count(number)
        speed = rounded(computing(profiles[0]) / computing(profile), 3)
        host = this_host(workers)
        found.append(replace(host, name=f"host{number}", speeds=(speed,) * workers if number else ()))
    return Cluster(tuple(found), within=within(profiles[0].costs.passing), between=between)


def computing(profile: Profile) -> float:
    """Seconds of one shard's forward and backward, beside the other workers of the host."""
    whole = profile.costs.together.whole
    return whole.forward + whole.backward
