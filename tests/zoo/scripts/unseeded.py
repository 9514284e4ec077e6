"""Not deterministic by itself: no seed."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
torch.seed()
model = DistributedDataParallel(small.Perceptron())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in small.loader():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
