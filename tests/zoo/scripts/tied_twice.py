"""Bug 10, the count: a tied table is reduced once for the embedding and once for the output."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F

dist.init_process_group("gloo")
torch.manual_seed(0)
model = small.Bag()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = small.loader()
head = model.table.weight
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for parameter in [*model.parameters(), head]:
            dist.all_reduce(parameter.grad)
        for parameter in model.parameters():
            parameter.grad /= dist.get_world_size()
        optimizer.step()
