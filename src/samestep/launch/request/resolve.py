"""Resolve a request into a job and a plan: the order in which sources count.

Numerics come from the command line, else from the job, else from fixed defaults; never from the
number of workers. The assignment follows the workers.
"""

import dataclasses
import os
import sys
from typing import Any

import torch
from torch import nn

from samestep.codec.edge_codec import NONE, parse_codec
from samestep.errors import PlanRefused
from samestep.job.job import Job
from samestep.launch.request.importing import call, load_function
from samestep.launch.request.known_kernels import check_promises, known_kernels
from samestep.launch.request.lock_file import locked
from samestep.launch.request.request import Request
from samestep.numerics import random_streams
from samestep.numerics.numerics import CHOSEN, Numerics, check_environment, fingerprint_of, parse_line
from samestep.numerics.policy import EXACT, Local, check_policy, parse_policy
from samestep.plan.cluster import Cluster
from samestep.plan.plan import OPTIONS, Plan, Stage, equal_shares, parse_fields, parse_stages, slices_text, spell
from samestep.setup.named_plans import pipeline_stages, resolved, sliced_stage
from samestep.system.device import instruction_set

OVERRIDES = ("seed", "shards", "precision", "sync_batchnorm", "codec", "sync")  # fields of a job that a request may set


def job_of(request: Request, made: Job | None = None) -> tuple[Job, dict[str, Any]]:
    """The job with the overrides of the request, and the numerics that the request fixes."""
    os.chdir(request.source.folder)
    sys.path[:] = list(request.source.path)
    chosen = chosen_numerics(request)
    random_streams.enter(chosen.get("seed", 0), "job")
    return with_numerics(
        call(load_function(request.source), request.source) if made is None else made, chosen, request
    ), chosen


def chosen_numerics(request: Request) -> dict[str, Any]:
    """Numerics that the command line and the plan file fix. Raises PlanRefused when they differ."""
    flags: dict[str, Any] = {name: getattr(request.numerics, name) for name in ("seed", "shards", "threads")}
    if request.numerics.codec is not None:
        flags["codec"] = str(parse_codec(request.numerics.codec) or NONE)
    if request.numerics.sync is not None:
        flags["sync"] = str(parse_policy(request.numerics.sync) or EXACT)
    values: dict[str, tuple[str, object]] = {f: (f"--{f}", v) for f, v in flags.items() if v is not None}
    sources = []
    if request.numerics.numerics is not None:
        sources.append(("--numerics", parse_line(request.numerics.numerics)))
    if request.planning.plan_text is not None:
        source = f"--plan {request.planning.plan}"
        sources.append((source, parse_line(parse_fields(request.planning.plan_text, source)["numerics"], source)))
    for source, fields in sources:
        for name, value in fields.items():
            other, known = values.setdefault(name, (source, value))
            if known != value:
                raise PlanRefused(f"{other} says {name}={known}, {source} says {name}={value}: leave one of them out")
    for name, least in (("shards", 1), ("threads", 1), ("seed", 0)):
        if name in values and int(str(values[name][1])) < least:
            raise PlanRefused(f"{values[name][0]} says {name}={values[name][1]}; it must be at least {least}")
    return {name: value for name, (_, value) in values.items()}


def with_numerics(job: Job, chosen: dict[str, Any], request: Request) -> Job:
    """The job with the overrides of the request."""
    overrides = {n: v for n, v in chosen.items() if n in OVERRIDES}
    overrides |= {n: v for n in ("steps", "epochs") if (v := getattr(request.training, n)) is not None}
    if len({"steps", "epochs"} & set(overrides)) == 1:  # a length given on the command line stands alone
        overrides = {"steps": None, "epochs": None} | overrides
    shards = locked(request.source.locked).get("shards")
    if job.shards is None and shards is not None:
        overrides = {"shards": shards} | overrides
    job = dataclasses.replace(job, **overrides)
    job.check()
    shards, codec = job.resolved_shards(), parse_codec(job.codec, "Job.codec")
    if codec is not None:
        codec.check(shards)
    source = "Job.sync" if request.numerics.sync is None else "--sync"
    policy = parse_policy(job.sync, source)
    check_policy(policy, shards, source)
    return dataclasses.replace(job, shards=shards, codec=str(codec or NONE), sync=str(policy or EXACT))


def threads_of(chosen: dict[str, Any], request: Request) -> int:
    """Threads per worker: the command line's, else the lock file's, else 1."""
    return int(chosen.get("threads") or str(locked(request.source.locked).get("threads", 1)))


def numerics_for(request: Request, job: Job, chosen: dict[str, Any]) -> Numerics:
    """The numerics as far as they are given: optimizer and processor are not known yet."""
    return Numerics(
        seed=job.seed,
        shards=job.resolved_shards(),
        threads=threads_of(chosen, request),
        precision=job.precision,
        sync_batchnorm=job.sync_batchnorm,
        slices=str(chosen.get("slices") or locked(request.source.locked).get("slices", "none")),
        join=int(chosen.get("join", 0)),
        codec=job.codec,
        sync=job.sync,
    )


def make_plan(job: Job, chosen: dict[str, Any], request: Request, optimizer: str, model: nn.Module) -> Plan:
    """The plan of a request. Raises PlanRefused when workers, assignment and shards do not fit one another."""
    assert job.shards is not None
    text, source = request.planning.plan_text, f"--plan {request.planning.plan}"
    fields = None if text is None else parse_fields(text, source)
    stages = _stages(job, request, model, job.shards, fields)
    kernels = known_kernels(request.planning.device)
    check_promises(kernels)
    numerics = dataclasses.replace(
        numerics_for(request, job, chosen),
        slices=slices_text(stages),
        optimizer=optimizer,
        torch=str(torch.__version__),
        isa=instruction_set(request.planning.device),
        mkl=request.numerics.mkl,
        kernels=fingerprint_of(kernels.hashes),
    )
    check_environment({name: value for name, value in chosen.items() if name not in CHOSEN}, numerics)
    transport = request.planning.transport or (fields["transport"] if fields else "processes")
    if stages:
        options = {name: fields[name] for name in OPTIONS if fields and name in fields}
        return Plan.staged(numerics, stages, transport, **options)
    policy = numerics.policy
    unit = numerics.shards // policy.num_workers(numerics.shards) if isinstance(policy, Local) else 1
    return Plan(numerics, _assignment(request, numerics.shards, fields, unit), transport)


def _stages(
    job: Job, request: Request, model: nn.Module, shards: int, fields: dict[str, Any] | None
) -> tuple[Stage, ...]:
    """The stages of a plan file or a preset; none for plain data parallelism."""
    asked = request.planning
    if fields is not None:
        if "stage" not in fields:
            return ()
        if asked.assign is not None or asked.workers is not None:
            raise PlanRefused(
                f"--plan {asked.plan} says which worker computes which stage: leave --workers and --assign out"
            )
        return resolved(parse_stages(fields["stage"]), job, model, shards, f"--plan {asked.plan}")
    if asked.plan in ("auto", "data"):
        if request.numerics.slices is not None:
            raise PlanRefused("--slices needs a plan that slices layers: add --plan hybrid or --plan slices")
        return ()
    if asked.plan == "pipeline":
        if asked.assign is not None:
            raise PlanRefused("--assign and --plan pipeline: the preset assigns the shards itself; write a plan file")
        workers = min(asked.default_workers, shards) if asked.workers is None else asked.workers
        return pipeline_stages(job, model, shards, workers)
    stage = sliced_stage(asked.plan, job, model, shards, request.numerics.slices)
    largest = max(shards, max(sum(counts) for _, counts in stage.slices))
    if asked.assign is None and asked.workers is not None and shards < asked.workers <= largest:
        assign = equal_shares(shards, asked.workers)  # those without rows still compute slices
    else:
        assign = _assignment(request, shards, None)
    slices = tuple((layer, equal_shares(sum(counts), len(assign))) for layer, counts in stage.slices)
    return (Stage("", tuple(range(len(assign))), assign, slices),)


def _assignment(request: Request, shards: int, fields: dict[str, Any] | None, unit: int = 1) -> tuple[int, ...]:
    """Shards per worker. unit: consecutive shards that one worker must compute together."""
    asked, assign = request.planning, request.planning.assign
    if assign is None and fields is not None and asked.workers is None:
        assign = tuple(fields["assign"])
    if assign is not None:
        if asked.workers not in (None, len(assign)):
            raise PlanRefused(
                f"--workers {asked.workers} and the assignment {spell(assign)} of {len(assign)} workers differ: "
                "leave one of them out"
            )
        return assign
    workers = min(asked.default_workers, shards // unit) if asked.workers is None else asked.workers
    if workers < 1:
        raise PlanRefused(f"--workers {workers}: a run needs at least 1 worker")
    if workers > shards:
        raise PlanRefused(
            f"{workers} workers are more than the {shards} shards of a batch, and a shard is computed by one worker: "
            f"use --workers {shards}, or --shards {workers} (S is part of the numbers: another S gives other bits; "
            "it is set by --shards, --numerics or Job.shards)"
        )
    if workers > shards // unit:
        raise PlanRefused(
            f"{workers} workers are more than the {shards // unit} logical workers of the sync policy, and each of "
            f"those is computed by one worker: use --workers {shards // unit}, or more of them (local(H,workers=L))"
        )
    return tuple(unit * count for count in equal_shares(shards // unit, workers))


def hosts_of(request: Request, workers: int) -> tuple[int, ...]:
    """Host of each worker, from --hosts or a cluster. Raises PlanRefused when their numbers differ."""
    if request.planning.hosts is None and request.planning.cluster is not None:
        return Cluster.parse(request.planning.cluster, "--cluster").first(workers).hosts_of_workers()
    counts = (workers,) if request.planning.hosts is None else request.planning.hosts
    if sum(counts) != workers or min(counts) < 1:
        raise PlanRefused(
            f"--hosts {spell(counts)} has {sum(counts)} workers, the plan has {workers}: give the number of workers on "
            "each host, at least 1"
        )
    return tuple(host for host, count in enumerate(counts) for _ in range(count))
