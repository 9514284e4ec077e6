"""Convolutions, then fully connected layers, on the digits; BatchNorm and dropout in train mode.

samestep train examples/cnn.py --workers 2
"""

import digits
import torch
from torch import Tensor, nn

import samestep


class Net(nn.Module):
    """Images (rows, 1, 28, 28) to logits (rows, 10)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.fully_connected = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 7 * 7, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fully_connected(self.convolutions(x))


def job(lr: float = 0.05, dropout: float = 0.3, epochs: int = 4) -> samestep.Job:
    train, held_out = digits.load()
    steps = epochs * -(-len(train[0]) // 128)
    return samestep.Job(
        model=lambda: Net(dropout),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr, momentum=0.9, weight_decay=5e-4, fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps),
        data=train,
        evaluate=held_out,
        batch_size=128,
        epochs=epochs,
    )
