"""Bug 8: gradients of the replicated norm are not reduced."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F

dist.init_process_group("gloo")
torch.manual_seed(0)
model = small.Perceptron()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = small.loader()
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        optimizer.step()
