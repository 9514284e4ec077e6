"""Bug 14: a resume makes the optimizer anew and does not load its state."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(small.Perceptron())
loader = small.loader()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for number, (x, y) in enumerate(loader):
    if number == 1:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
