"""Build everything that the workers of a run share: job, model, plan, checkpoint to go on from."""

import copy
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samestep.errors import CheckpointRefused, JobRefused, PlanRefused
from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.launch.probe.choose_plan import pick_plan, with_pick
from samestep.launch.probe.other_cluster import pick_plan_for_cluster
from samestep.launch.request.known_kernels import untried_torch
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import chosen_numerics, hosts_of, job_of, make_plan
from samestep.launch.run.worker import EventSender, Resumption, WorkerRun
from samestep.numerics import random_streams
from samestep.parallel.gradients.job_optimizer import implementation
from samestep.parallel.lazy_init.lazy_replay import LazyModel, record_factory
from samestep.plan.plan import Plan
from samestep.planner.search.decision import Decision
from samestep.setup.laid_out_model import LaidOutModel, hollow
from samestep.setup.parallelize import divide, prepare
from samestep.setup.plan_check import check_memory, checked, footprints
from samestep.setup.proof import prove_cut
from samestep.state.checkpoint import finished, read_description
from samestep.sync.logical_workers import check_local
from samestep.sync.staleness import check_stale
from samestep.system import heap


def build(
    request: Request,
    send: EventSender,
    hosts: tuple[int, ...] | None = None,
    made: Job | None = None,
    decision: Decision | None = None,
) -> tuple[WorkerRun, LaidOutModel, nn.Module | None]:
    """Everything that workers share; for threads also a copy of the model in its first state.

    hosts: the host of every worker, if a launcher has started them. made: a job that exists already. decision: the
    planner's, if it has made the request's plan.

    Raises JobRefused or PlanRefused for what cannot be run.
    """
    if request.planning.memory_limit is not None:
        heap.keep_compact()
    if request.planning.device != "cpu" and hosts is None:
        raise PlanRefused(
            f"--device {request.planning.device}: `samestep plan` and hosted workers look at the CPU only"
        )
    job, chosen = job_of(request, made)
    if request.training.record is not None:  # a record compares numbers only
        job = replace(job, callbacks=())
    random_streams.enter(job.seed, "model")
    initial = None if request.planning.memory_limit is None else recorded(job, request)
    model = job.build_model() if initial is None else initial.model
    asked = request
    if request.planning.plan == "auto" and request.planning.plan_text is None:
        choose = pick_plan if request.planning.cluster is None else pick_plan_for_cluster
        request, decision = choose(request, job, model, chosen)
        chosen = chosen_numerics(request)
    pristine = copy.deepcopy(model) if request.planning.transport == "threads" else None
    prepared = prepare(job, model, initial)
    with hollow(prepared):
        plan = make_plan(job, chosen, request, implementation(prepared.optimizer), model)
    if plan.transport == "threads" and pristine is None:
        raise PlanRefused('a plan with transport = "threads" needs --transport threads on the command line as well')
    if hosts is not None and plan.workers != len(hosts):
        raise PlanRefused(
            f"the plan has {plan.workers} workers and the launcher has started {len(hosts)} processes: start as many "
            "as the plan has workers"
        )
    hosts = hosts_of(request, plan.workers) if hosts is None else hosts
    check_stale(plan, request.planning.device)
    check_local(plan, request.planning.device, is_limited=request.planning.memory_limit is not None)
    prepared = divide(job, plan, prepared)
    _, schedules = checked(job, plan, prepared)
    if request.planning.memory_limit is not None:
        check_memory(footprints(job, plan, prepared, schedules, hosts), request.planning.memory_limit)
    resumption = find_checkpoint(request)
    done = memoryview(mmap.mmap(-1, 8 * plan.workers)).cast("q")
    run = WorkerRun(
        job, plan, request, send, resumption, done, hosts, rebalances=rebalances(asked, plan), decision=decision
    )
    if (warning := untried_torch(str(torch.__version__))) is not None:
        send({"event": "warning", "text": warning})
    if plan.stages:
        try:
            unproven = prove_cut(job, plan, prepared, request.planning.memory_limit)
        except PlanRefused as error:
            uncut = without_cuts(decision)
            if uncut is None:
                raise
            send({"event": "warning", "text": f"the planner's first choice is refused, the next one taken: {error}"})
            picked, _ = with_pick(asked, uncut)
            return build(picked, send, hosts, made, uncut)
        if unproven:
            send({"event": "warning", "text": unproven})
    send(announcement(run) | {"prediction": None if decision is None else decision.prediction.as_json()})
    return run, prepared, pristine


def without_cuts(decision: Decision | None) -> Decision | None:
    """The decision between the candidates that leave the model uncut; None if there is none."""
    ranking = () if decision is None else tuple(one for one in decision.ranking if not one.plan.stages)
    return replace(decision, ranking=ranking) if decision is not None and ranking else None


def rebalances(asked: Request, plan: Plan) -> bool:
    """Whether shards are reassigned when workers' speeds change. asked: the request before a plan was looked for.

    Raises PlanRefused where that is asked for and cannot be.
    """
    numerics = plan.numerics
    reasons = {
        "one worker has all shards": plan.workers == 1,
        "the plan has stages or slices": bool(plan.stages),
        f"the codec {numerics.codec} keeps what it owes where the shards are": numerics.codec != "none",
        "shards that meet in synchronized batch normalization hide each worker's speed": numerics.sync_batchnorm,
        f"workers agree by {numerics.sync}": numerics.policy is not None,
        "workers hold parts of the model only": asked.planning.memory_limit is not None,
        "workers compute on GPUs": asked.planning.device != "cpu",
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if asked.planning.rebalance == "on" and why is not None:
        raise PlanRefused(f"--rebalance on: {why}, and shards are reassigned only without that; leave it out")
    is_assigned = asked.planning.assign is not None or asked.planning.plan_text is not None
    return why is None and (asked.planning.rebalance == "on" or (asked.planning.rebalance is None and not is_assigned))


def recorded(job: Job, request: Request) -> LazyModel:
    """The model without memory, for a run in which no process may hold the whole of it.

    Raises JobRefused or PlanRefused for what needs the whole.
    """
    if isinstance(job.model, nn.Module):
        raise JobRefused(
            f"Job.model is a {type(job.model).__name__} that exists already, and --memory-limit wants each worker to "
            "make its own parts: give a function that makes the model"
        )
    for asked, what in ((job.evaluate, "Job.evaluate"), (request.training.save, "--save")):
        if asked is not None:
            raise JobRefused(
                f"{what} needs the whole model in one worker, and --memory-limit is for models that do not fit there: "
                "leave one of them out (--checkpoint writes every worker's parts)"
            )
    if request.planning.transport == "threads":
        raise PlanRefused("--memory-limit limits processes: leave --transport threads out")
    return record_factory(job.build_model)


def announcement(run: WorkerRun) -> dict[str, Any]:
    job, plan = run.job, run.plan
    order = None if job.data is None else job.row_order(training_rows(job).num_rows)
    return {
        "event": "plan",
        "workers": plan.workers,
        "assign": list(plan.assign),
        "shards": plan.numerics.shards,
        "threads": plan.numerics.threads,
        "transport": plan.transport,
        "hosts": [run.hosts.count(host) for host in sorted(set(run.hosts))],
        "numerics": plan.numerics.line(),
        "plan": str(plan),
        "first_step": run.first_step,
        "num_steps": 0 if order is None else job.num_steps(order),
        "batch_size": job.batch_size,
        "num_rows": None if order is None else order.num_rows,
        "batches_per_epoch": None if order is None else order.batches_per_epoch,
    }


def find_checkpoint(request: Request) -> Resumption | None:
    """The checkpoint to go on from. Raises CheckpointRefused for one that cannot be read."""
    if request.training.checkpoint is None:
        return None
    root = Path(request.training.checkpoint)
    found = finished(root)
    if not found:
        return None
    if not request.training.resume:
        raise CheckpointRefused(
            f"{root} holds checkpoints up to {found[-1].name}: go on from there with --resume, or name another folder"
        )
    return Resumption(found[-1], read_description(found[-1]))
