"""One contender: `python contender.py KIND MODEL OPTION FOLDER`.

plain THREADS      a bare PyTorch loop in one process
ddp WORKERS        DistributedDataParallel over gloo, one thread each
samestep W:S       W workers, S shards, whole model on each. A third word changes that:
         W:S:in-place      adds shards up in place instead of in the tree
         W:S:PRESET        another plan by name: slices, hybrid, pipeline
         W:S:ORDER@LAYER   a pipeline in the order gpipe, 1f1b ..., cut before LAYER (LAYER,LAYER for more cuts)
"""

import contextlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rounds import Turns, until_peer_leaves

import samestep
from models import MODELS, optimizer
from samestep.numerics.reduction_tree import Fold, FoldPlan, local_plan
from samestep.parallel.execution import executor
from samestep.plan.plan import PRESETS

EVER = 10**9  # steps


class TurnsCallback:
    """Lets worker 0 wait for its turn between steps; the others wait for worker 0."""

    def __init__(self, folder: str) -> None:
        self._turns = Turns(folder)
        self._begun = False

    def __call__(self, step: int, loss: float, metrics: object) -> None:
        if step == 0:
            self._turns.begin()
        else:
            self._turns.step()


def in_place(shards: range, num_shards: int) -> FoldPlan:
    """Every shard added into slot 0 as it comes: what accumulation does."""
    folds = tuple(Fold(0, (0,) if i else ()) for i in range(len(shards)))
    return FoldPlan(folds, local_plan(shards, num_shards).left)


def job(model: str, shards: int, folder: str, adding: str = "tree") -> samestep.Job:
    build, data, loss, batch_size = MODELS[model]
    if adding == "in-place":
        executor.local_plan = in_place
    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=batch_size, shards=shards,
        steps=EVER, callbacks=[TurnsCallback(folder)],
    )  # fmt: skip


def pipeline(order: str, layers: list[str], shards: int) -> str:
    """A plan's text: one stage per worker, cut before `layers`."""
    stages = [
        f'[[stage]]\nfirst = "{first}"\nworkers = [{rank}]\nassign = [{shards}]\n'
        for rank, first in enumerate(["", *layers])
    ]
    return "\n".join([f'numerics = "shards={shards}"\norder = "{order}"\n', *stages])


def train(model: str, option: str, folder: str) -> None:
    workers, shards, *words = option.split(":")
    settings = {"model": model, "shards": int(shards), "folder": folder}
    word = words[0] if words else "data"
    order, cut, layers = word.partition("@")
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file, contextlib.suppress(samestep.TrainingFailed):
        # worker 0 leaves when there are no more rounds
        if cut:
            file.write(pipeline(order, layers.split(","), int(shards)))
            file.flush()
            samestep.train(job, settings=settings, plan=file.name)
        elif word in PRESETS:
            samestep.train(job, settings=settings, workers=int(workers), plan=word)
        else:
            samestep.train(job, settings={**settings, "adding": word}, workers=int(workers), plan="data")


def loop(model_name: str, rows_per_batch: int, step_done, model: torch.nn.Module | None = None) -> None:
    build, data, loss, _ = MODELS[model_name]
    x, y = data()
    model = model or build()
    opt = optimizer(list(model.parameters()))
    while True:
        for rows in torch.randperm(len(x)).split(rows_per_batch):
            if len(rows) == rows_per_batch:
                opt.zero_grad()
                loss(model(x.index_select(0, rows)), y.index_select(0, rows)).backward()
                opt.step()
                step_done()


def plain(model: str, threads: str, folder: str) -> None:
    torch.set_num_threads(int(threads))
    turns = Turns(folder)
    turns.begin()
    loop(model, MODELS[model][3], turns.step)


@until_peer_leaves()
def ddp_rank(rank: int, model_name: str, workers: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=workers)
    build, _, _, batch_size = MODELS[model_name]
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(build())
    step_done = lambda: None  # noqa: E731 - the other ranks wait in all-reduce while rank 0 waits for its turn
    if rank == 0:
        Path(f"{folder}.store").unlink(missing_ok=True)
        turns = Turns(folder)
        turns.begin()
        step_done = turns.step
    loop(model_name, batch_size // workers, step_done, model)


def main(kind: str, model: str, option: str, folder: str) -> None:
    if kind == "plain":
        plain(model, option, folder)
    elif kind == "ddp":
        mp.spawn(ddp_rank, (model, int(option), folder), nprocs=int(option))
    elif kind == "samestep":
        train(model, option, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
