"""Bug 16: the optimizer holds parameters that the model no longer has."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = small.Perceptron()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.__future__.set_overwrite_module_params_on_conversion(True)
model = DistributedDataParallel(model.double().float())
loader = small.loader()
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
