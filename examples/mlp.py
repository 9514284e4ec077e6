"""A network with one hidden layer on m digits of n = 784 pixels, trained with SGD.

samestep train examples/mlp.py --workers 2
samestep train examples/mlp.py --workers 2 --set hidden=1024 --set lr=0.1
"""

import digits
import torch
from torch import nn

import samestep


def job(hidden: int = 256, lr: float = 0.05, epochs: int = 5) -> samestep.Job:
    train, held_out = digits.load()
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr, momentum=0.9, fused=True),
        data=train,
        evaluate=held_out,
        batch_size=128,
        epochs=epochs,
    )
