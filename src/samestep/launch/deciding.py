"""`--plan auto`: from a request and a job to a plan, by way of a profile.

The numbers are not the planner's: seed, shards, threads and slices stay what they are. Only where `--slices K`
allows it are layers cut, and the plan says which. A number of workers that was asked for is kept.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import psutil
from torch import nn

from samestep.cluster import Cluster
from samestep.errors import PlanRefused
from samestep.job import Job
from samestep.launch.environment import machine_name
from samestep.launch.profiling import profiled
from samestep.launch.request import Request
from samestep.machine import Host, Link, rounded
from samestep.numerics import Numerics
from samestep.parallelize import training_rows
from samestep.planner.costs import Passing
from samestep.planner.decision import Decision, decide
from samestep.planner.profile import Profile
from samestep.planner.search import Freedom

SHORT = 100  # steps: a run that is shorter is not worth measuring, unless somebody asked for it


def decided(
    request: Request, job: Job, model: nn.Module, chosen: dict[str, Any], hosts: Sequence[int] | None = None
) -> tuple[Request, Decision | None]:
    """The request with the plan that was found; without a decision where the default plan will do."""
    if hosts is not None or reason_to_leave(request, job) is not None:
        return dataclasses.replace(request, plan="data"), None
    numerics = Numerics(
        seed=job.seed,
        shards=job.resolved_shards(),
        threads=int(chosen.get("threads", 1)),
        precision=job.precision,
        sync_batchnorm=job.sync_batchnorm,
        join=int(chosen.get("join", 0)),
        codec=job.codec,
    )
    most = request.default_workers if request.workers is None else request.workers
    may_slice = request.slices is not None
    if most > numerics.shards and not may_slice:
        most = numerics.shards if request.workers is None else most
    profile = profiled(job, model, numerics, most, request.slices, request.profile, request.function)
    found = decide(profile, this_machine(profile, most), numerics, freedom_of(request, most, may_slice, numerics))
    plan = str(found.pick.plan)
    return dataclasses.replace(request, plan_text=plan, workers=None, slices=None), found


def reason_to_leave(request: Request, job: Job) -> str | None:
    """Why a plan is not looked for, when nobody asked for it by name."""
    if job.data is None:
        return "the batches come from a loop of the user's own"
    if (
        request.assign is not None
        or request.hosts is not None
        or request.transport == "threads"
        or request.device != "cpu"
    ):
        return "the command says who computes what"
    if request.memory_limit is not None:
        return "the model is made in parts"
    if request.plan_is_asked or request.only_outline or request.slices is not None:
        return None
    steps = job.num_steps(job.row_order(training_rows(job).num_rows))
    return f"{steps} steps are not worth measuring" if steps < SHORT else None


def freedom_of(request: Request, most: int, may_slice: bool, numerics: Numerics) -> Freedom:
    counts = (most,) if request.workers is not None else tuple(range(1, most + 1))
    if not may_slice and max(counts) > numerics.shards:
        raise PlanRefused(
            f"{max(counts)} workers are more than the {numerics.shards} shards of a batch, and a shard is computed by "
            f"one worker: use --workers {numerics.shards}, or --shards {max(counts)} (S is part of the numbers)"
        )
    return Freedom(counts, may_slice, may_cut=not numerics.sync_batchnorm)


def this_machine(profile: Profile, workers: int) -> Cluster:
    host = Host(machine_name(), psutil.cpu_count() or 1, workers, psutil.virtual_memory().total)
    return Cluster((host,), within=within(profile.costs.passing))


def within(passing: Passing) -> Link:
    """The link that passing tensors between two workers amounts to."""
    per_byte = passing.send_byte + passing.receive_byte
    return Link(rounded(passing.send + passing.receive), rounded(1 / per_byte) if per_byte else 1e10)
