"""Models for measurements, with random data: the same for every contender."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    """784-1024-1024-10, ReLU; 1.9 M parameters."""
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def cnn() -> nn.Module:
    """Three convolutions and two fully connected layers on 3x32x32; 2.2 M parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8192, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def alexnet() -> nn.Module:
    """One tower, no dropout, on 3x224x224; 61.1 M parameters (Krizhevsky 2014)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
    )  # fmt: skip


class Block(nn.Module):
    """A pre-norm transformer block. x: (rows, positions, d)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        rows, positions, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, positions, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, positions, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """4 blocks, d 256, 4 heads, vocabulary 256, 128 positions; 3.3 M parameters. x: (rows, positions)."""

    def __init__(
        self, d: int = 256, layers: int = 4, heads: int = 4, vocabulary: int = 256, positions: int = 128
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, d), nn.Embedding(positions, d)
        self.blocks = nn.Sequential(*[Block(d, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h)))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def images(*shape: int, classes: int = 10, rows: int = 512) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, *shape), torch.randint(0, classes, (rows,))


def texts() -> tuple[Tensor, Tensor]:
    rows = torch.randint(0, 256, (256, 129))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def photos() -> tuple[Tensor, Tensor]:
    return images(3, 224, 224, classes=1000, rows=64)


def deep_gpt() -> nn.Module:
    """8 blocks, 6.5 M parameters; cut before `blocks.4` both halves have the same blocks."""
    return GPT(layers=8)


def wide_gpt() -> nn.Module:
    """4 blocks, d 1024; 51 M parameters, 204 MB."""
    return GPT(d=1024)


class TiedGPT(GPT):
    """A model whose head shares the embedding's weight."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.head.weight = self.tokens.weight


def words(vocabulary: int = 32_000) -> tuple[Tensor, Tensor]:
    rows = torch.randint(0, vocabulary, (256, 129))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def wide_cnn() -> nn.Module:
    """The CNN with 512 hidden features: 4.3 M parameters, of which 4.2 M are in the first layer of its head."""
    layers = list(cnn())[:-3]
    return nn.Sequential(*layers, nn.Linear(8192, 512), nn.ReLU(), nn.Linear(512, 10))


def small_mlp() -> nn.Module:
    """64-128-10; 9,610 parameters."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside an identity. x: (rows, channels, height, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def resnet() -> nn.Module:
    """A small ResNet on 3x32x32: three residual blocks of 64 channels between a stem and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Residual(64), Residual(64), Residual(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Recurrent(nn.Module):
    """An LSTM of 256 over 64 positions of 128 features, a classifier on the last one. x: (rows, 64, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(128, 256, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def bag() -> nn.Module:
    """A text classifier: the mean of 32 embeddings of 20,000 words, then 128-256-20; 2.6 M parameters."""
    return nn.Sequential(nn.EmbeddingBag(20_000, 128), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 20))


def bags() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 20_000, (1024, 32)), torch.randint(0, 20, (1024,))


MODELS = {
    "mlp": (mlp, lambda: images(784), nn.CrossEntropyLoss(), 128),
    "cnn": (cnn, lambda: images(3, 32, 32), nn.CrossEntropyLoss(), 64),
    "alexnet": (alexnet, photos, nn.CrossEntropyLoss(), 16),
    "alexnet-32": (alexnet, photos, nn.CrossEntropyLoss(), 32),
    "gpt": (GPT, texts, token_loss, 16),
    "gpt-deep": (deep_gpt, texts, token_loss, 16),
    "gpt-deep-32": (deep_gpt, texts, token_loss, 32),
    "gpt-wide": (wide_gpt, texts, token_loss, 8),
    "gpt-32k": (lambda: GPT(vocabulary=32_000), words, token_loss, 16),
    "gpt-32k-tied": (lambda: TiedGPT(vocabulary=32_000), words, token_loss, 16),
    "mlp-small": (small_mlp, lambda: images(64), nn.CrossEntropyLoss(), 64),
    "mlp-1024": (mlp, lambda: images(784, rows=2048), nn.CrossEntropyLoss(), 1024),
    "resnet": (resnet, lambda: images(3, 32, 32), nn.CrossEntropyLoss(), 64),
    "lstm": (Recurrent, lambda: images(64, 128), nn.CrossEntropyLoss(), 64),
    "bag": (bag, bags, nn.CrossEntropyLoss(), 128),
    "cnn-wide": (wide_cnn, lambda: images(3, 32, 32), nn.CrossEntropyLoss(), 64),
}
"""Model, data, loss and batch size by name."""


def optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.01, momentum=0.9, fused=True)
