"""Jobs that write what they do."""

from pathlib import Path

import torch
from torch import nn

import samestep


def job(kind: str, where: str, bad_row: bool = False) -> samestep.Job:
    """40 rows in 3 batches per epoch; with `bad_row` the loss of one of them is not finite."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    if bad_row:
        x[0] = torch.inf
    callback = {"json": samestep.JsonLines, "tensorboard": samestep.TensorBoard}[kind](Path(where))
    return samestep.Job(
        model=lambda: nn.Linear(6, 3),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, 0.1),
        data=(x, y),
        evaluate=(x, y),
        batch_size=16,
        shards=2,
        epochs=2,
        callbacks=[callback],
    )
