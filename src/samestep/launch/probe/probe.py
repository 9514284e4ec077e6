"""Probe: a short run of a plan that measures how long its actions take. It trains a copy and keeps nothing.

    leader ---fork---> prober (this code) ---fork---> workers of the probe: the real executor
                             <-- the events of their rings, as JSON in memory without a name --

The workers are those of an ordinary run, so the measured costs are those of a run: kernels, caches,
messages, and the other workers beside them.
"""

import copy
import gc
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from samestep.errors import SamestepError, TrainingFailed
from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.launch.failure import error_from, failure_event
from samestep.launch.probe.children import fork_all
from samestep.parallel.demand.workspace import mail_slots
from samestep.plan.plan import Plan
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.parallelize import divide, prepare, take_part
from samestep.setup.run_memory import RunMemory, bind, groups_that_meet, share
from samestep.system import heap
from samestep.trace.timesheet import Event
from samestep.training.trainer import Training
from samestep.transport.shared_fabric import SharedFabric

WARM = 2  # steps that do not count: kernels are chosen, memory is fetched (the heap grows in the second step, too)


@dataclass(frozen=True)
class ActionTiming:
    """One action of one step of a probe."""

    step: int
    action: str  # its class
    segment: int  # -1: it has none
    shard: int  # or the first one of a set; -1: it has none
    start: float  # seconds of the host's monotonic clock
    stop: float
    waited: float

    @property
    def busy(self) -> float:
        return self.stop - self.start - self.waited


@dataclass(frozen=True)
class Probe:
    """Result of a probe: the samples of each worker's steps, without the warm ones."""

    plan: Plan
    samples: Sequence[Sequence[ActionTiming]]

    @property
    def steps(self) -> int:
        return len({sample.step for sample in self.samples[0]})


def probe(job: Job, plan: Plan, model: nn.Module, seconds: float, least_steps: int = 2) -> Probe:
    """Run `plan` for about `seconds`, at least `least_steps` steps that count.

    Raises what a worker raised: a Refused, or TrainingFailed with its traceback. The model is left as it is.
    """
    prepared = divide(job, plan, prepare(job, copy.deepcopy(model)))
    names = {id(module): name for name, module in prepared.model.named_modules()}
    fabric = SharedFabric(plan.workers, groups_that_meet(prepared, plan), mail_slots(plan))
    shared = share(prepared, plan, fabric)
    bind(prepared, shared)
    heap.before_fork()
    part = ProbedPart(job, plan, prepared, shared, fabric, seconds, least_steps)
    wait = fork_all([partial(_work, part, rank, names) for rank in range(plan.workers)])
    fabric.close()
    found = wait()
    gc.unfreeze()
    failures = [one for one in found if isinstance(one, dict)]
    if failures or None in found:
        raise first_error(failures)
    return Probe(plan, [[ActionTiming(*row) for row in rows] for rows in found])


def first_error(failures: Sequence[dict[str, Any]]) -> SamestepError:
    """The error that is the cause of the others."""
    causes = [one for one in failures if not one["secondary"]]
    return (
        error_from((causes or failures)[0])
        if failures
        else TrainingFailed("a worker ended while its plan was measured")
    )


@dataclass(frozen=True)
class ProbedPart:
    """Values that all workers of a probe share. seconds, least_steps: how long they run."""

    job: Job
    plan: Plan
    prepared: LaidOutModel
    shared: RunMemory
    fabric: SharedFabric
    seconds: float
    least_steps: int


def _work(part: ProbedPart, rank: int, names: Mapping[int, str]) -> Any:
    """One worker of a probe: the rows of its `ActionTiming`s, or the event of its failure. names: of the modules."""
    transport = part.fabric.endpoint(rank)
    step = 0
    try:
        torch.set_num_threads(part.plan.numerics.threads)
        # Times do not depend on what the numbers are, and --allow-nan is the run's to judge.
        training = Training(
            part.job, take_part(part.job, part.plan, part.prepared, part.shared, transport, 0, allow_nan=True)
        )
        full = FullSteps(part.job)
        began, stop, done = time.perf_counter(), False, 0
        while not stop and step < training.num_steps:
            done += step in full
            enough = done >= WARM + part.least_steps and time.perf_counter() - began > part.seconds
            stop = training.step(enough).stop
            step += 1
        counted = set(counted_steps([at for at in range(step) if at in full]))
        return [row_of(event) for event in transport.timesheet.ring if event.step in counted]
    except BaseException as error:  # noqa: BLE001 - raised again by whoever asked for the probe
        return failure_event(error, rank, step) | failing_layer(error, names)
    finally:
        transport.close()


class FullSteps:
    """The steps of a job whose batch is whole: an epoch's last one may have fewer rows, and costs less."""

    def __init__(self, job: Job) -> None:
        self.order, self.rows = job.row_order(training_rows(job).num_rows), job.batch_size

    def __contains__(self, step: int) -> bool:
        return self.order.batch_rows(step) == self.rows


def counted_steps(full: Sequence[int]) -> Sequence[int]:
    """Steps that count: those with a whole batch but the warm ones; the last one of a very short job."""
    return full[WARM:] or full[-1:]


def failing_layer(error: BaseException, names: Mapping[int, str]) -> dict[str, str]:
    """Name of the innermost module in whose forward an error was raised; empty when there was none."""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(module := frame.f_locals.get("self"), nn.Module):
            found = names.get(id(module)) or found
    return {"name": f"layer {found}"} if found else {}


def row_of(event: Event) -> tuple[Any, ...]:
    action = event.action
    shards = getattr(action, "shards", None)
    shard = getattr(action, "shard", -1) if shards is None else next(iter(shards), -1)
    segment = getattr(action, "segment", getattr(action, "stage", -1))
    return event.step, type(action).__name__, segment, shard, event.start, event.stop, event.waited
