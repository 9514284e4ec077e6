"""What the scripts of the zoo share: a data set of noise, three models. A script is a training of its own otherwise."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def rows(number: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(number, 8, generator=generator), torch.randint(0, 4, (number,), generator=generator)
    )


class Perceptron(nn.Module):
    def __init__(self, norm: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16) if not norm else nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5) if dropout else nn.Identity()
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(torch.tanh(self.norm(self.fc1(x)))))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x.unsqueeze(1))).flatten(1))


class Bag(nn.Module):
    """An embedding, tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        words = (x.abs() * 10).long() % 4
        return self.fc(self.table(words).mean(1)) @ self.table.weight.T


def loader(size: int = 8, number: int = 64, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    data = rows(number)
    return DataLoader(data, size, sampler=DistributedSampler(data, shuffle=shuffle, drop_last=True), drop_last=True)
