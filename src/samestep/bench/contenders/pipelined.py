"""torch's pipelining: consecutive layers on different workers, a batch in microbatches, order 1F1B.

A Sequential is cut as it is; any other model is traced by torch (`torch.distributed.pipelining.pipeline`). The
cuts are those of our own preset: stages as even in work as the chain of layers allows.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, SplitPoint, pipeline

from samestep.bench.contenders.contender_process import DoesNotApply
from samestep.errors import Refused
from samestep.job.job import Job
from samestep.job.training_data import first_shard
from samestep.setup.named_plans import pipeline_stages
from samestep.system.device import precision_of
from samestep.training.plain_loop import PlainUpdate, trainable

PER_STAGE = 4  # microbatches: with 4 per stage, little of a step is waiting (Huang et al. 2019, 2.3)


def microbatches_of(rows: int, stages: int) -> int:
    """Number of microbatches: at most `PER_STAGE` per stage, of equal length. Raises DoesNotApply when none fits."""
    able = [number for number in range(stages, PER_STAGE * stages + 1) if rows % number == 0]
    if not able:
        raise DoesNotApply(
            f"a batch of {rows} rows cannot be cut into {stages} to {PER_STAGE * stages} microbatches of one length"
        )
    return able[-1]


class Pipelined:
    """One worker of the pipeline. Raises DoesNotApply when the model cannot be cut."""

    note = ""

    def __init__(self, job: Job, model: nn.Module, rank: int, workers: int) -> None:
        if job.loss is None:
            raise DoesNotApply("torch's pipelining wants a loss separate from the model, and the job has forward=")
        if job.sync_batchnorm:
            raise DoesNotApply("BatchNorm over the whole batch needs all microbatches at once")
        number = microbatches_of(job.batch_size, workers)
        self._job, self._rank, self._workers = job, rank, workers
        stage = self._stage(model, cuts_of(job, model, workers), number)
        self._update = PlainUpdate(job, self._params)
        self._schedule = Schedule1F1B(stage, number, loss_fn=job.loss)

    def _stage(self, model: nn.Module, cuts: list[str], number: int) -> Any:
        parts = parts_of(model, cuts)
        device = torch.device("cpu")
        if parts is not None:
            own = nn.Sequential(*parts[self._rank])
            self._params = trainable(own)
            return PipelineStage(own, self._rank, self._workers, device)
        traced = traced_stages(self._job, model, cuts, number)
        self._params = trainable(traced.get_stage_module(self._rank))
        return traced.build_stage(self._rank, device)

    def step(self, batch: Any) -> Tensor:
        self._update.optimizer.zero_grad()
        losses: list[Tensor] = []
        with precision_of(self._job.precision, torch.device("cpu")):
            if self._rank == 0:
                self._schedule.step(batch[0])
            elif self._rank == self._workers - 1:
                self._schedule.step(target=batch[1], losses=losses, return_outputs=False)
            else:
                self._schedule.step()
        if self._job.clip_grad_norm is not None:
            self._clip(self._job.clip_grad_norm)
        self._update.step()
        return torch.stack(losses).mean().detach() if losses else torch.zeros(())

    def _clip(self, largest: float) -> None:
        """Clip by the norm over all stages."""
        grads = [param.grad for param in self._params if param.grad is not None]
        squares = torch.stack([grad.square().sum() for grad in grads]).sum() if grads else torch.zeros(())
        dist.all_reduce(squares)
        factor = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor)


def cuts_of(job: Job, model: nn.Module, workers: int) -> list[str]:
    """The layers at which stages begin, except the first stage."""
    if workers < 2:
        raise DoesNotApply("a pipeline has 2 stages or more")
    try:
        stages = pipeline_stages(job, model, job.resolved_shards(), workers)
    except Refused as error:
        raise DoesNotApply(str(error)) from None
    if len(stages) < workers:
        raise DoesNotApply(f"the model has {len(stages)} parts that can be stages, for {workers} workers")
    return [stage.first for stage in stages[1:]]


def parts_of(model: nn.Module, cuts: list[str]) -> list[list[nn.Module]] | None:
    """The layers of every stage of a Sequential, nested ones opened; None for any other model."""
    if type(model) is not nn.Sequential:
        return None
    parts: list[list[nn.Module]] = [[]]
    left = list(cuts)
    for name, layer in flat(model):
        if left and name == left[0]:
            parts.append([])
            left.pop(0)
        parts[-1].append(layer)
    return None if left else parts


def flat(model: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Names and layers of a Sequential, nested ones opened."""
    found: list[tuple[str, nn.Module]] = []
    for local, child in model.named_children():
        name = f"{prefix}{local}"
        found += flat(child, f"{name}.") if type(child) is nn.Sequential else [(name, child)]
    return found


def traced_stages(job: Job, model: nn.Module, cuts: list[str], number: int) -> Any:
    """torch's own cut of a model that it has traced on one microbatch. Raises DoesNotApply when it cannot."""
    x = first_shard(job, number)[0][: job.batch_size // number]
    try:
        return pipeline(model, (x,), split_spec=dict.fromkeys(cuts, SplitPoint.BEGINNING))
    except Exception as error:  # noqa: BLE001 - tracing runs the user's code
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DoesNotApply(f"torch cannot trace the model: {reason}") from None
