"""Agree on one plan: each host measures itself, all measure the links between them, and each worker decides the same
from all of it.

    host a: worker 0   a fork server of its own measures the job    \\
    host b: worker 2   the same, at the same time                    > the run's store > each decides
    0 <--> 2           bytes there and back at once                 /

Deciding is deterministic, so the plan itself does not travel.
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
from samestep.launch.hosts.membership import ANSWER_TIME, Membership, in_time
from samestep.launch.probe.choose_plan import decide_on, this_host, why_no_search, with_pick, within
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


def agree_on_plan(
    membership: Membership, request: Request, links: Callable[[], Links | None]
) -> tuple[Request, Decision | None, Job]:
    """The request with the plan that all workers agree on, and the job, made once. All workers must call it.

    links: connects all workers; returns None when they are on one host. Raises Refused.
    """
    decision, job = decision_together(membership, request, links)
    if decision is None:
        return request.but(plan="data"), None, job
    return *with_pick(request, decision), job


def decision_together(
    membership: Membership, request: Request, links: Callable[[], Links | None]
) -> tuple[Decision | None, Job]:
    """The decision that all workers agree on; None where no plan is searched. Raises Refused."""
    try:
        with building():
            job, chosen = job_of(request)
    except BaseException as error:
        report_no_job(membership, error)
        raise
    if request.planning.probe:
        raise PlanRefused("--probe runs plans by itself, and a launcher has started these workers: leave it out")
    if why_no_search(request, job) is not None:
        return None, job
    profiles = exchange_profiles(membership, request.but(plan_is_asked=True))
    connected = links()
    between = None if connected is None else link_between(membership, connected)
    cluster = cluster_of(profiles, membership.hosts, between)
    return decide_on(request, job, chosen, profiles[0], cluster, (cluster.workers,)), job


def report_no_job(membership: Membership, error: BaseException) -> None:
    """Report to all that no profile will come: this worker has no job to measure."""
    reason = f"{membership.name(membership.world.rank)} could not begin: {type(error).__name__}: {error}"
    for host in range(1 + max(membership.hosts)):
        membership.store.set(f"profile {host}", json.dumps({"failed": reason}))


def exchange_profiles(membership: Membership, request: Request) -> list[Profile]:
    """Every host's profile; the first worker of each host has it measured. Raises PlanRefused where one cannot."""
    store, ranks = membership.store, membership.on_this_host
    number = membership.hosts[membership.world.rank]
    if membership.world.rank == ranks[0]:
        store.set(f"profile {number}", json.dumps(measure_this_host(request.but(workers=len(ranks), hosts=None))))
    names = [f"profile {host}" for host in range(1 + max(membership.hosts))]
    limit = membership.timeout + PROBING
    in_time(lambda: store.wait(names, timedelta(seconds=limit)), limit + ANSWER_TIME)
    found = [json.loads(store.get(name)) for name in names]
    for host, one in enumerate(found):
        if "failed" in one:
            raise TrainingFailed(one["failed"])
        if "error" in one:
            raise PlanRefused(f"{membership.name(membership.hosts.index(host))}: {one['error']}")
    return [Profile.parse(one["profile"], f"the profile of host {host}") for host, one in enumerate(found)]


def measure_this_host(request: Request) -> dict[str, str]:
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
        found = measure_link(links, first[(place + 1) % len(first)], first[place - 1])
        store.set(f"link {place}", json.dumps(found))
    names = [f"link {place}" for place in range(len(first))]
    in_time(lambda: store.wait(names, timedelta(seconds=PROBING)), PROBING + ANSWER_TIME)
    all_found = [json.loads(store.get(name)) for name in names]
    latency, bandwidth = max(f[0] for f in all_found), min(f[1] for f in all_found)
    return Link(rounded(latency), rounded(bandwidth))


def measure_link(links: Links, following: int, before: int) -> tuple[float, float]:
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
    """The hosts with their measured speeds: the first one's speed is 1."""
    found = []
    for number, profile in enumerate(profiles):
        workers = hosts.count(number)
        speed = rounded(shard_seconds(profiles[0]) / shard_seconds(profile), 3)
        host = this_host(workers)
        found.append(replace(host, name=f"host{number}", speeds=(speed,) * workers if number else ()))
    return Cluster(tuple(found), within=within(profiles[0].costs.passing), between=between)


def shard_seconds(profile: Profile) -> float:
    """Seconds of one shard's forward and backward while all workers of the host compute."""
    whole = profile.costs.together.whole
    return whole.forward + whole.backward
