"""A right training by DistributedDataParallel, FSDP2 or by hand; the arguments say which."""

import argparse
import contextlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import small

parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=["Perceptron", "Convolutions", "Bag"], default="Perceptron")
parser.add_argument("--how", choices=["ddp", "fsdp", "hand"], default="ddp")
parser.add_argument("--optimizer", choices=["SGD", "Adam", "AdamW"], default="SGD")
parser.add_argument("--micro", type=int, default=1)
parser.add_argument("--clip", type=float, default=0.0)
parser.add_argument("--rows", type=int, default=96)
parser.add_argument("--schedule", action="store_true")
parser.add_argument("--dropout", action="store_true")
parser.add_argument("--scale", type=float, default=0.0, help="a GradScaler's first factor, of 1000 times the loss")
parser.add_argument("--check", action="store_true", help="leave a step out whose gradient is not finite")
options = parser.parse_args()

dist.init_process_group("gloo")
torch.manual_seed(0)
model = small.Perceptron(dropout=True) if options.dropout else getattr(small, options.model)()
torch.manual_seed(100 + dist.get_rank())
if options.how == "ddp":
    model = DistributedDataParallel(model)
elif options.how == "fsdp":
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model, mesh=mesh)
rate = 0.01 if options.optimizer != "SGD" else 0.1
more = {"momentum": 0.9} if options.optimizer == "SGD" else {}
optimizer = getattr(torch.optim, options.optimizer)(model.parameters(), lr=rate, **more)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
scaler = torch.amp.GradScaler("cpu", init_scale=options.scale or 1.0, enabled=options.scale > 0)
times = 1000 if options.scale else 1  # so that the first steps overflow
loader = small.loader(8, options.rows)
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for number, (x, y) in enumerate(loader):
        last = (number + 1) % options.micro == 0
        with model.no_sync() if options.how == "ddp" and not last else contextlib.nullcontext():
            scaler.scale(F.cross_entropy(model(x), y) * times / options.micro).backward()
        if not last:
            continue
        if options.how == "hand":
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        if options.check and not all(parameter.grad.isfinite().all() for parameter in model.parameters()):
            optimizer.zero_grad()
            continue
        if options.clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        scaler.step(optimizer)
        scaler.update()
        if options.schedule:
            schedule.step()
        optimizer.zero_grad()
