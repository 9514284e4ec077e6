"""Bug 9: every worker clips its own share of the parameters, by the norm of the share."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(small.Perceptron())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = small.loader()
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        mine = list(model.parameters())[dist.get_rank() :: dist.get_world_size()]
        torch.nn.utils.clip_grad_norm_(mine, 0.1)
        optimizer.step()
