"""AlexNet's shape on the digits: five convolutions, then three fully connected layers with most of the weights.

samestep train examples/alexnet.py --workers 2 --plan data        every worker computes the whole network
samestep train examples/alexnet.py --workers 2 --plan hybrid      convolutions by shards, fully connected by slices
samestep train examples/alexnet.py --workers 2 --plan pipeline    the first layers on one worker, the rest on the other

The convolutions have 0.1 million weights and large activations, the fully connected layers 3.3 million
weights and small activations. Data parallelism moves all the weights' gradients; the hybrid moves the
convolutions' gradients and the fully connected layers' activations instead (Krizhevsky 2014,
"One weird trick for parallelizing convolutional neural networks").
"""

import digits
import torch
from torch import Tensor, nn

import samestep


class AlexNet(nn.Module):
    """Images (rows, 1, 28, 28) to logits (rows, 10)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(64 * 3 * 3, 1536), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(1536, 1536), nn.ReLU(), nn.Linear(1536, 10),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # torch's default is too small for eight layers (He 2015)
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def job(lr: float = 0.005, dropout: float = 0.2, epochs: int = 4) -> samestep.Job:
    train, held_out = digits.load()
    return samestep.Job(
        model=lambda: AlexNet(dropout),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr, momentum=0.9, fused=True),
        data=train,
        evaluate=held_out,
        batch_size=128,
        epochs=epochs,
    )
