"""PyTorch's own ways of training the user's job, as people write them, in processes of their own.

    plain N   a bare loop in one process with N threads, on whole batches
    ddp W     DistributedDataParallel           fsdp2 W   fully_shard           rows divided, one thread each
    tp W      parallelize_module                pp W      1F1B over PipelineStage    whole batches, one thread each

All start from the same parameters and train on the same batches in the same order as a run of ours. Processes
speak gloo over the loopback interface; they meet in a file without a name, so that nothing else listens.
"""

import contextlib
import datetime
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from samestep.bench.contenders.contender_process import DoesNotApply
from samestep.bench.contenders.contender_spec import ContenderSpec
from samestep.bench.contenders.contender_turns import ContenderTurns, Pipes, take_turns
from samestep.bench.contenders.own_contender import as_compared
from samestep.errors import SamestepError
from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.launch.request import resolve
from samestep.launch.request.request import Request
from samestep.numerics import random_streams
from samestep.numerics.numerics import shard_rows
from samestep.system.processes import fork

WAITS = datetime.timedelta(days=1)  # while the others have their turns


class PeerMethod(Protocol):
    """One worker's part of a way to train."""

    @property
    def note(self) -> str:
        """A note for readers of the table."""
        ...

    def step(self, batch: Any) -> Tensor:
        """Train on a batch. Returns this worker's part of the batch's loss: the parts add up to it. 0-dim."""
        ...


Build = Callable[[Job, nn.Module, int, int], PeerMethod]


def run_peer(spec: ContenderSpec, pipes: Pipes) -> None:
    """Run until this process is asked to end."""
    build = builder_of(spec.kind)
    if spec.kind == "plain":
        torch.set_num_threads(spec.size)
        sys.exit(_reporting(pipes, partial(train_in_turns, build, spec, 0, pipes)))
    store = os.memfd_create("store")
    ranks = [fork(partial(_rank, build, spec, rank, pipes, store)) for rank in range(spec.size)]
    ended = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in ranks]
    sys.exit(max(map(abs, ended)))


def _rank(build: Build, spec: ContenderSpec, rank: int, pipes: Pipes, store: int) -> int:
    torch.set_num_threads(1)

    def work() -> None:
        meeting = dist.FileStore(  # type: ignore[attr-defined]
            f"/proc/self/fd/{store}", spec.size
        )
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=spec.size, timeout=WAITS)
        train_in_turns(build, spec, rank, pipes)
        dist.destroy_process_group()

    return _reporting(pipes, work)


def _reporting(pipes: Pipes, work: Callable[[], None]) -> int:
    """Do the work; return an exit status.

    A failure is reported to the orchestrator, except for the loss of another process, which reports the cause itself.
    """
    try:
        work()
    except DoesNotApply as error:
        ContenderTurns(pipes).say(refused=str(error))
    except SamestepError as error:
        ContenderTurns(pipes).say(failed=str(error).splitlines()[0])
    except BaseException as error:  # noqa: BLE001 - shown in the table
        traceback.print_exc()
        if "closed by peer" in str(error) or "reset by peer" in str(error):
            return 1
        ContenderTurns(pipes).say(failed=one_line(error))
    else:
        return 0
    return 1


def one_line(error: BaseException) -> str:
    """The first line of an error, which PyTorch may spread over pages."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def train_in_turns(build: Build, spec: ContenderSpec, rank: int, pipes: Pipes) -> None:
    """Take a worker's turns. Worker 0 receives the number of steps and passes it on."""
    job = job_of(spec.request)
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    workers = 1 if spec.kind == "plain" else spec.size
    way = build(job, model, rank, workers)
    batches = batches_of(job, shard_rows(job.batch_size, workers)[rank] if spec.kind in ("ddp", "fsdp2") else None)
    first = _sum(way.step(next(batches)), workers)
    turns = ContenderTurns(pipes) if rank == 0 else None
    if turns is not None:
        turns.say(ready=True, loss=first, note=way.note)

    def answer(seconds: list[float], loss: Tensor) -> None:
        whole = _sum(loss, workers)
        if turns is not None:
            turns.say(seconds=seconds, loss=whole)

    with contextlib.suppress(StopIteration):
        take_turns(lambda: _passed_on(turns, workers), lambda: way.step(next(batches)), answer)


def builder_of(kind: str) -> Build:
    """The builder of a method from a job, a model, a rank and a number of workers; it raises DoesNotApply.

    Imports of its workers are made here once, before they are forked.
    """
    importlib.import_module("torch._dynamo")  # optimizers do at their first step
    if kind == "plain":
        from samestep.training.plain_loop import Loop

        return lambda job, model, rank, workers: Loop.plain(job, model)
    if kind in ("ddp", "fsdp2"):
        from samestep.bench.contenders.replicated import replicated

        return partial(replicated, kind)
    if kind == "tp":
        from samestep.bench.contenders.tensor_parallel import TensorParallel

        return TensorParallel
    from samestep.bench.contenders.pipelined import Pipelined

    return Pipelined


def job_of(request: Request) -> Job:
    """The job as a run of ours makes it, in this process."""
    return as_compared(resolve.job_of(request)[0])


def batches_of(job: Job, own: range | None) -> Iterator[Any]:
    """The batches of a run from its first step on, without end, with the rows in `own` (None: all)."""
    rows = training_rows(job)
    order = job.row_order(rows.num_rows).batches(0)
    return iter(rows.take((epoch, batch if own is None else batch[own.start : own.stop]) for epoch, batch in order))


def _passed_on(turns: ContenderTurns | None, workers: int) -> int:
    """The number of steps of the next turn, broadcast by worker 0."""
    steps = torch.tensor([0 if turns is None else turns.wait()])
    if workers > 1:
        dist.broadcast(steps, 0)
    return int(steps)


def _sum(loss: Tensor, workers: int) -> float:
    """The loss summed over all workers."""
    whole = loss.detach().double().clone()
    if workers > 1:
        dist.all_reduce(whole)
    return float(whole)
