"""A job in which one worker flips one bit of its own memory, between an update and the next one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

import samestep
from samestep.audit import blame
from samestep.audit.watch_pace import WatchPace
from samestep.parallel.execution.executor import Executor
from samestep.parallel.gradients.layout import storage_order
from samestep.schedule import actions

ROWS, BATCH = 64, 16


class Net(nn.Module):
    """Parameters, statistics, a constant and a frozen weight."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, wide, 3)
        self.frozen = nn.Linear(wide, wide)
        self.frozen.requires_grad_(False)
        self.last = nn.Linear(wide, 5)
        self.register_buffer("mask", torch.ones(wide))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3))
        return self.last(self.frozen(x) * self.mask)  # type: ignore[no-any-return]


def job(
    kind: str = "none",
    tensor: int = 0,
    worker: int = 1,
    element: int = 0,
    bit: int = 0,
    at: int = 3,
    adam: bool = False,
    steps: int = 32,
    size: int = 10,
    wide: int = 16,
    said: str = "",
    watched: bool = True,
    made: bool = True,
    longest: float = 60.0,
) -> samestep.Job:
    """kind: of tensor, parameter, state, buffer or frozen. tensor, element: numbers, taken modulo as many as there are.

    The tensor's name is appended to the file `said`. watched: else memory at rest is looked at after audits only.
    made: else the model is a module that nobody can make anew. longest: seconds that doing steps again may take.
    """
    original, blame.LONGEST = Executor.load, longest

    def load(self: Executor, action: actions.Load, state: Any) -> None:
        if (
            state.number == at and self.transport.rank == worker and self.transport.size > 1
        ):  # alone is who does it again
            name = flip(self, kind, tensor, element, bit)
            if said:
                with Path(said).open("a") as file:
                    file.write(name)
        original(self, action, state)

    if kind != "none":
        Executor.load = load  # type: ignore[method-assign]
    if not watched:
        WatchPace.watches_after = lambda self, step: False  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    data = (
        torch.randn(ROWS, 3, size, size, generator=generator),
        torch.randint(0, 5, (ROWS,), generator=generator),
    )
    return samestep.Job(
        model=(lambda: Net(wide)) if made else Net(wide),
        data=data,
        loss=nn.CrossEntropyLoss(),
        optimizer=(lambda p: optim.AdamW(p, 0.01)) if adam else lambda p: optim.SGD(p, 0.1, momentum=0.9),
        scheduler=lambda o: optim.lr_scheduler.ExponentialLR(o, 0.99),
        batch_size=BATCH,
        shards=4,
        steps=steps,
    )


def flip(executor: Executor, kind: str, tensor: int, element: int, bit: int) -> str:
    """Returns the tensor's name."""
    name, value = (found := tensors(executor, kind))[tensor % len(found)]
    flat = storage_order(value.detach())
    whole = flat.view({4: torch.int32, 8: torch.int64}[flat.element_size()])
    bits = flat.element_size() * 8
    number = 1 << bit % bits
    whole[element % len(flat)] ^= number - (1 << bits) if number >> bits - 1 else number
    return name


def tensors(executor: Executor, kind: str) -> list[tuple[str, Tensor]]:
    if kind == "parameter":
        return [(f"parameter {entry.name}", entry.param) for _, entry in executor.layout.owners()]
    if kind == "state":
        return [
            (f"optimizer state {key} of {executor.layout.entries[piece.entry].name}", value)
            for piece, _, key, value in executor.update.state.pieces()
        ]
    if kind == "buffer":
        buffers = executor.buffers
        return [(f"buffer {name}", value) for name, value in zip(buffers.names, buffers.values, strict=True)]
    return [(f"frozen parameter {n}", p) for n, p in executor.model.named_parameters() if not p.requires_grad]
