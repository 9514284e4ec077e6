"""Training in this process, workers as threads: a run takes milliseconds."""

import copy
import os
from typing import Any

import samestep
from samestep.job.report import Report
from samestep.launch.failure import Event
from samestep.launch.request.options import JobSource
from samestep.launch.request.request import Request
from samestep.launch.run.build import build
from samestep.launch.run.outcome import Outcome
from samestep.launch.run.worker import run_threads
from samestep.parallel.gradients.stretches import by_host
from samestep.plan.plan import Plan
from samestep.setup.parallelize import divide, prepare
from samestep.setup.run_memory import bind, share
from samestep.transport.thread_hosts import ThreadHosts


class Told:
    """A run's events, and whether one of its workers was refused something in or after the first update."""

    def __init__(self) -> None:
        self.outcome = Outcome()

    def __call__(self, message: Event, /, *files: int) -> None:
        self.outcome.take(message, [os.dup(file) for file in files])

    @property
    def step(self) -> int:
        failed = [failure["step"] or 0 for failure in self.outcome.failures]
        return max([len(self.outcome.losses), *failed])


def trained(job: samestep.Job, plan: Plan | str, workers: int | None, told: Told, **options: Any) -> Report:
    """The report of a run. options: as for `samestep.train`.

    Raises what `samestep.train` raises, and what the job raises before its workers begin.
    """
    asked = None if isinstance(plan, Plan) else workers
    request = Request.made_here(JobSource(), plan, workers=asked, transport="threads", want_weights=True, **options)
    run, prepared, pristine = build(request, told, made=job)
    assert pristine is not None, "workers as threads have models of their own"
    known = {} if prepared.recipe is None else prepared.recipe.known
    copies = [prepare(run.job, copy.deepcopy(pristine)) for _ in range(1, run.plan.workers)]
    models = [prepared, *(divide(run.job, run.plan, model, known) for model in copies)]
    fabric = ThreadHosts(run.hosts)
    near = by_host(range(run.plan.workers), run.hosts)
    shared = [share(prepared, run.plan, part, near[host]) for host, part in enumerate(fabric.fabrics)]
    for model, host in zip(models, run.hosts, strict=True):
        bind(model, shared[host])
    run_threads(run, models, shared, fabric)
    return told.outcome.conclude()
