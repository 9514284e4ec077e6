"""Bug 5: every worker takes the mean over its own tokens, and workers have unlike numbers of them."""

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
        y = y.masked_fill(x[:, 1] > 0.2, -100)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
