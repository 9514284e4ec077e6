"""Bug 4: gradients are set to zero before every micro-batch."""

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
        for part in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part::2]), y[part::2]).div(2).backward()
        optimizer.step()
