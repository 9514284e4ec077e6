"""Networks whose forward is cut: every family of the table in test_grids.py."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import samestep

ROWS, BATCH, SHARDS, STEPS = 60, 24, 8, 5  # the third step of an epoch has 12 rows: 6 shards


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def words(length: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (ROWS, length), generator=torch.Generator().manual_seed(2))


LABELS = torch.arange(ROWS) % 5


def job(**fields: object) -> samestep.Job:
    given = {"loss": nn.CrossEntropyLoss(), "batch_size": BATCH, "shards": SHARDS, "steps": STEPS, "epochs": 9}
    return samestep.Job(**{**given, **fields})  # type: ignore[arg-type]


def sgd(params: list[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(params, 0.05, momentum=0.9, fused=True)


def decayed(params: list[nn.Parameter]) -> optim.Optimizer:
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=3e-3, fused=True)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(18, 40), nn.ReLU(), nn.Linear(40, 40), nn.Tanh(), nn.Dropout(0.2), nn.Linear(40, 30), nn.GELU()
        )
        self.head = nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def mlp() -> samestep.Job:
    return job(model=MLP, data=(numbers(ROWS, 18), LABELS), optimizer=sgd, evaluate=(numbers(20, 18), LABELS[:20]))


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12)
        self.dropout = nn.Dropout(0.3)
        self.full, self.head = nn.Linear(12 * 9, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x))).flatten(1)
        return self.head(self.dropout(F.relu(self.full(x))))


def cnn() -> samestep.Job:
    return job(model=CNN, data=(numbers(ROWS, 2, 8, 8), LABELS), optimizer=sgd, clip_grad_norm=0.5)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.dropout = nn.Linear(width, 64), nn.Linear(64, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """The head is the token embedding; every block's input also skips to the end."""

    def __init__(self, vocabulary: int = 50, width: int = 32, length: int = 6) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = first = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x + first))


def per_token(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt() -> samestep.Job:
    text = words(7, 50)
    return job(model=GPT, data=(text[:, :-1], text[:, 1:]), loss=per_token, optimizer=decayed, clip_grad_norm=1.0)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.layers = nn.Sequential(Residual(8, 8, 1), Residual(8, 12, 2), Residual(12, 12, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


def resnet() -> samestep.Job:
    return job(model=ResNet, data=(numbers(ROWS, 2, 8, 8), LABELS), optimizer=sgd)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.bag = nn.Embedding(40, 14), nn.EmbeddingBag(40, 10)
        self.hidden, self.dropout, self.head = nn.Linear(24, 20), nn.Dropout(0.2), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.embedding(x).mean(1), self.bag(x)], 1)
        return self.head(self.dropout(torch.tanh(self.hidden(both))))


def embedding() -> samestep.Job:
    return job(model=Classifier, data=(words(5, 40), LABELS), optimizer=lambda params: optim.Adagrad(params, 0.1))


class Encoder(nn.Module):
    """torch's own transformer layers, 5 heads each, positions first."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 20)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(20, 5, 30, dropout) for _ in range(2))
        self.head = nn.Linear(20, 5)
        self.register_buffer("later", torch.ones(6, 6, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x).transpose(0, 1)
        h = self.layers[0](h, src_mask=self.later, is_causal=True)
        h = self.layers[1](h, src_mask=self.later)
        return self.head(h.mean(0))


def encoder(dropout: float = 0.1) -> samestep.Job:
    return job(model=lambda: Encoder(dropout), data=(words(6, 40), LABELS), optimizer=sgd)
