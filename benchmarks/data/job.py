"""A small model over rows of 1,024 floats, stored in .npy files."""

import numpy as np
import torch
from torch import Tensor, nn

import samestep

WIDTH = 1024


def middle(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """A model that learns the mean of a row from its first half."""
    (x,) = batch
    return nn.functional.mse_loss(model(x[:, : WIDTH // 2]).squeeze(1), x.mean(1))


def job(folder: str, form: str = "Files", loaders: int = 0) -> samestep.Job:
    rows = samestep.Files(folder) if form == "Files" else np.load(f"{folder}/rows.npy", mmap_mode="r")
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(WIDTH // 2, 64), nn.ReLU(), nn.Linear(64, 1)),
        forward=middle,
        optimizer=lambda params: torch.optim.SGD(params, 0.05),
        data=rows,
        num_loader_workers=loaders,
        batch_size=256,
    )
