"""Bug 16: the optimizer updates copies in double precision and never writes them back."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel


class Masters(torch.optim.Optimizer):
    def __init__(self, parameters: object, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.masters = [parameter.detach().double() for parameter in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self) -> None:
        for master, parameter in zip(self.masters, self.param_groups[0]["params"], strict=True):
            master -= self.param_groups[0]["lr"] * parameter.grad
            parameter.clone().copy_(master)


dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(small.Perceptron())
optimizer = Masters(model.parameters(), lr=0.1)
loader = small.loader()
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
