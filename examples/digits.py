"""The 10,000 digits of `data/`, as tensors: 8,000 to train on, 2,000 held out."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 2_000
FILE = Path(__file__).parent / "data" / "mnist-10k.npz"


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((images, labels) to train on, (images, labels) held out). Images: (rows, 1, 28, 28), mean 0."""
    with np.load(FILE) as data:
        images = torch.from_numpy(data["images"]).float().div(255).sub(0.1307).div(0.3081).unsqueeze(1)
        labels = torch.from_numpy(data["labels"]).long()
    return (images[:-HELD_OUT], labels[:-HELD_OUT]), (images[-HELD_OUT:], labels[-HELD_OUT:])
