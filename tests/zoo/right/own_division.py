"""A right training that divides its rows itself, so that one process needs another batch size."""

import argparse
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import small

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=8, help="of one worker")
options = parser.parse_args()

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(small.Perceptron())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
data = small.rows(96)
loader = DataLoader(Subset(data, range(dist.get_rank(), len(data), dist.get_world_size())), options.batch_size)
for x, y in loader:
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
