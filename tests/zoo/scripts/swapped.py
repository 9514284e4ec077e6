"""Bug 21: two gradients of one shape are reduced in swapped order on one worker."""

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
        gradients = [model.norm.weight.grad, model.norm.bias.grad]
        others = [p.grad for name, p in model.named_parameters() if "norm" not in name]
        for gradient in others + (gradients if dist.get_rank() == 0 else gradients[::-1]):
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        optimizer.step()
