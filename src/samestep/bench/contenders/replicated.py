"""Rows of a batch divided among workers that keep the whole model (DDP) or a piece of it (FSDP2)."""

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from samestep.bench.contenders.contender_process import DoesNotApply
from samestep.job.job import Job
from samestep.numerics.numerics import shard_rows
from samestep.setup.named_plans import chain_of
from samestep.training.plain_loop import Loop, trainable


def replicated(kind: str, job: Job, model: nn.Module, rank: int, workers: int) -> Loop:
    """The loop of one worker. Raises DoesNotApply when the job couples rows of different workers."""
    if job.sync_batchnorm:
        raise DoesNotApply("torch's BatchNorm over the whole batch (SyncBatchNorm) needs GPUs")
    if workers > job.batch_size:
        raise DoesNotApply(f"{workers} workers are more than the {job.batch_size} rows of a batch")
    share = len(shard_rows(job.batch_size, workers)[rank]) / job.batch_size
    wrapped = DistributedDataParallel(model) if kind == "ddp" else sharded(model, workers)
    return Loop(job, wrapped, [trainable(wrapped)], share=share, workers=workers, total=_over_all)


def sharded(model: nn.Module, workers: int) -> nn.Module:
    """The model under FSDP2: layers or blocks are gathered one by one when used, as torch's documentation has it."""
    mesh = init_device_mesh("cpu", (workers,))
    for name in chain_of(model):
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _over_all(weight: Tensor) -> Tensor:
    dist.all_reduce(weight)
    return weight
