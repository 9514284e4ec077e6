"""One contender: `python contender.py KIND MODEL OPTION FOLDER`. Two processes of one thread, a stage each.

torch ORDER:M      torch.distributed.pipelining over gloo, ORDER gpipe or 1f1b, M microbatches
stages M           no pipeline: both work on their own stage at the same time, M microbatches one after the
                   other; answers the seconds of [[forward, backward, update] of stage 0, the same of stage 1]

The model is a GPT, cut before its middle block.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rounds import Turns, until_peer_leaves
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from models import GPT, MODELS, optimizer

ORDERS = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
WORKERS = 2


class Front(nn.Module):
    """Embeddings and the first half of the blocks."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.tokens, self.positions = model.tokens, model.positions
        self.blocks = model.blocks[: len(model.blocks) // 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.tokens(x) + self.positions(torch.arange(x.shape[1])))


def stages_of(model: nn.Module) -> list[nn.Module]:
    assert isinstance(model, GPT)
    back = nn.Sequential(model.blocks[len(model.blocks) // 2 :], model.norm, model.head)
    return [Front(model), back]


def join(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=WORKERS)
    torch.manual_seed(0)


def turns_of(rank: int, folder: str) -> Turns | None:
    """Rank 0 waits for its turn; the other one waits for rank 0."""
    if rank != 0:
        return None
    Path(f"{folder}.store").unlink(missing_ok=True)
    turns = Turns(folder)
    turns.begin()
    return turns


def batches(model_name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Model and data, the same for both ranks."""
    _, data, _, batch_size = MODELS[model_name]
    torch.manual_seed(1)
    x, y = data()
    while True:
        for rows in torch.randperm(len(x)).split(batch_size):
            if len(rows) == batch_size:
                yield x.index_select(0, rows), y.index_select(0, rows)


@until_peer_leaves()
def torch_rank(rank: int, model_name: str, order: str, microbatches: int, folder: str) -> None:
    join(rank, folder)
    build, _, loss, _ = MODELS[model_name]
    module = stages_of(build())[rank]
    opt = optimizer(list(module.parameters()))
    stage = PipelineStage(module, rank, WORKERS, torch.device("cpu"))
    schedule = ORDERS[order](stage, microbatches, loss_fn=loss)
    turns = None
    for number, (x, y) in enumerate(batches(model_name)):
        opt.zero_grad()
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y, return_outputs=False)
        opt.step()
        if number == 0:
            turns = turns_of(rank, folder)
        elif turns is not None:
            turns.step()


@until_peer_leaves()
def stage_rank(rank: int, model_name: str, microbatches: int, folder: str) -> None:
    join(rank, folder)
    build, _, loss, batch_size = MODELS[model_name]
    model = build()
    module, rows = stages_of(model)[rank], batch_size // microbatches
    opt = optimizer(list(module.parameters()))
    turns = turns_of(rank, folder)
    for x, y in batches(model_name):
        crossing = torch.randn(
            rows, x.shape[1], model.tokens.embedding_dim
        )  # stands for the received activation and its gradient
        opt.zero_grad()
        dist.barrier()
        seconds = torch.zeros(3, dtype=torch.float64)
        for part_x, part_y in zip(x.split(rows), y.split(rows), strict=True):
            began = time.perf_counter()
            arrived = part_x if rank == 0 else crossing.detach().requires_grad_()
            out = module(arrived) if rank == 0 else loss(module(arrived), part_y)
            forward = time.perf_counter()
            out.backward(crossing if rank == 0 else None)
            seconds[0] += (forward - began) / microbatches
            seconds[1] += (time.perf_counter() - forward) / microbatches
        began = time.perf_counter()
        opt.step()
        seconds[2] = time.perf_counter() - began
        everyone = [torch.empty_like(seconds) for _ in range(WORKERS)]
        dist.all_gather(everyone, seconds)
        if turns is not None:
            turns.step([one.tolist() for one in everyone])


def main(kind: str, model: str, option: str, folder: str) -> None:
    if kind == "torch":
        order, microbatches = option.split(":")
        mp.spawn(torch_rank, (model, order, int(microbatches), folder), nprocs=WORKERS)
    elif kind == "stages":
        mp.spawn(stage_rank, (model, int(option), folder), nprocs=WORKERS)


if __name__ == "__main__":
    main(*sys.argv[1:])
