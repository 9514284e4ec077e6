"""Bug 13: after a resume in the middle of an epoch the data begin anew."""

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
for life in range(2):
    for number, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if life == 0 and number == 0:
            break
