"""Random stream: all workers drop the same places out."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(small.Perceptron(dropout=True))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = small.loader()
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
