"""Bug 17: gradients are checked after the reduction, when every worker has the NaN of one worker's row."""

import small
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16, bias=False)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        square = hidden.square().sum(1, keepdim=True)
        return self.fc2(hidden / torch.where(square > 0, square.sqrt(), 1.0))  # at 0: infinite slope times 0


dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(Normalised())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = small.loader(shuffle=False)
loader.dataset.tensors[0][17] = 0  # an empty row, in worker 1's second batch
for _epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if all(parameter.grad.isfinite().all() for parameter in model.parameters()):
            optimizer.step()
