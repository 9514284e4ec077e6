"""A model of 200 MB of parameters; its workers put themselves under a limit that the kernel enforces."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn, optim
from torch.utils.data import Dataset

import samestep

WIDTH, LAYERS = 2048, 12


def model() -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Linear(WIDTH, 10))


class Limited(Dataset[tuple[Tensor, int]]):
    """Rows of noise. Every process but the one that made it joins a control group of its own first."""

    def __init__(self, group: str, limit: int) -> None:
        self.group, self.limit, self.known = group, limit, {os.getpid()}

    def __len__(self) -> int:
        if self.group and os.getpid() not in self.known:
            self.known.add(os.getpid())
            own = Path(self.group) / f"worker-{os.getpid()}"
            own.mkdir()
            (own / "memory.limit_in_bytes").write_text(str(self.limit))
            (own / "cgroup.procs").write_text(str(os.getpid()))
        return 64

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(row)), row % 10


def job(group: str = "", limit: int = 0) -> samestep.Job:
    return samestep.Job(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.SGD(params, 0.01, momentum=0.9, fused=True),
        data=Limited(group, limit),
        batch_size=32,
        shards=2,
        steps=3,
    )
