"""One worker of a contender on two hosts: `python contender.py KIND MODEL OPTION FOLDER`, with RANK and so on set.

plain THREADS          a bare PyTorch loop in one process
ddp THREADS            DistributedDataParallel over gloo, one process per host
samestep PLAN:S[:CODEC]    one worker per host, S shards; PLAN is a preset, or
    data/A,B     A and B shards on the two hosts
    U@A,B        a pipeline: layers before A and from B on host 0, those between on host 1 (U@A: A and all later ones)
    sliced@A,B   layers A and B in two slices, everything else data-parallel
    serial       data, and no gradient is sent before backward is done
    unsent       data, and nothing is sent at all (wrong numbers: the time of a step without a network)
"""

import contextlib
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "step_time"))

import torch
import torch.distributed as dist
from contender import EVER, loop, optimizer, plain
from rounds import Turns, until_peer_leaves

import samestep
from models import MODELS
from samestep.parallel.gradients.host_exchange import HostExchange
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.setup.plan_check import outline

RANK = int(os.environ.get("RANK", "0"))


@until_peer_leaves()
def ddp(model: str, threads: str, folder: str) -> None:
    torch.set_num_threads(int(threads))
    dist.init_process_group("gloo")
    build, _, _, batch_size = MODELS[model]
    torch.manual_seed(0)
    wrapped = torch.nn.parallel.DistributedDataParallel(build())
    turns = Turns(folder)
    if RANK == 0:
        turns.begin()
    step_done = turns.step if RANK == 0 else lambda: None
    loop(model, batch_size // dist.get_world_size(), step_done, wrapped)


def train(model: str, option: str, folder: str, *, predicts: bool = False) -> None:
    plan, shards, *codec = option.split(":", 2)
    plan, _, assign = plan.partition("/")
    kind, _, layers = plan.partition("@")
    if kind == "serial":
        HostExchange.ready = lambda self, entry: None
    if kind == "unsent":
        for name in ("begin", "ready", "finish"):
            setattr(HostExchange, name, lambda self, *_: None)
        TreeReduction.sum_pieces = lambda self, *_: 0
    build, data, loss, batch_size = MODELS[model]
    torch.manual_seed(0)  # seed of the data
    job = samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=batch_size, shards=int(shards),
        steps=EVER, codec=codec[0] if codec else "none",
    )  # fmt: skip
    shares = [int(share) for share in assign.split(",")] if assign else None
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        if kind in ("U", "sliced"):
            file.write((stages if kind == "U" else slices)(layers.split(","), int(shards)))
            file.flush()
        named = {"U": file.name, "sliced": file.name, "serial": "data", "unsent": "data"}.get(kind, plan)
        trainer = samestep.Trainer(job, plan=named, assign=shares, timeout=3600)
    turns = Turns(folder)
    if predicts and RANK == 0:
        joined = trainer._joined
        said = outline(joined.run.job, trainer.plan, joined.prepared, {}, joined.run.hosts).wired
        (Path(folder) / "predicted").write_text(json.dumps(said))
    steps = trainer.steps()
    next(steps)
    if RANK == 0:
        turns.begin()
    with contextlib.suppress(samestep.TrainingFailed):  # rank 0 ends without a message
        for _ in steps:
            if RANK == 0:
                turns.step()


def stages(layers: list[str], shards: int) -> str:
    """A plan's text: host 0, host 1, host 0."""
    text = f'numerics = "shards={shards}"\norder = "1f1b"\n'
    for rank, first in zip((0, 1, 0), ["", *layers], strict=False):
        text += f'[[stage]]\nfirst = "{first}"\nworkers = [{rank}]\nassign = [{shards}]\n'
    return text


def slices(layers: list[str], shards: int) -> str:
    """A plan's text: one stage on both hosts."""
    text = f'numerics = "shards={shards}"\n[[stage]]\nworkers = [0, 1]\n'
    text += f"assign = [{shards // 2}, {shards // 2}]\n[stage.slices]\n"
    return text + "".join(f'"{layer}" = [1, 1]\n' for layer in layers)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    {"plain": plain, "ddp": ddp, "samestep": train, "counted": partial(train, predicts=True)}[kind](*rest)
