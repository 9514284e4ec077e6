"""A small character GPT on Moby-Dick: dropout, a tied head, AdamW with two parameter groups.

samestep train examples/gpt.py --workers 2 --steps 200
"""

import gzip
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import samestep

FILE = Path(__file__).parent / "data" / "moby-dick.txt.gz"


class Block(nn.Module):
    """A pre-norm transformer block. x: (rows, positions, d)."""

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        rows, positions, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, positions, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout * self.training)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, positions, d))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Characters (rows, positions) to logits (rows, positions, vocabulary)."""

    def __init__(self, vocabulary: int, positions: int, d: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(vocabulary, d), nn.Embedding(positions, d)
        self.blocks = nn.Sequential(nn.Dropout(dropout), *[Block(d, heads, dropout) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)
        for weight in (self.characters.weight, self.positions.weight):
            nn.init.normal_(weight, std=0.02)
        self.head.weight = self.characters.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.characters(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h)))


def text_rows(positions: int) -> tuple[Tensor, int]:
    """The book cut into rows of positions + 1 characters, as numbers; and how many different ones."""
    text = gzip.decompress(FILE.read_bytes()).decode("utf-8", errors="ignore")
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    all_numbers = torch.tensor([number[character] for character in text])
    rows = len(text) // (positions + 1)
    return all_numbers[: rows * (positions + 1)].view(rows, -1), len(number)


def groups(params: list[nn.Parameter]) -> list[dict[str, object]]:
    """Weight decay for matrices, none for vectors."""
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def job(
    d: int = 128, layers: int = 3, positions: int = 96, dropout: float = 0.1, lr: float = 1e-3, steps: int = 400
) -> samestep.Job:
    rows, vocabulary = text_rows(positions)
    train, held_out = rows[:-200], rows[-200:]
    return samestep.Job(
        model=lambda: GPT(vocabulary, positions, d, layers, d // 32, dropout),
        loss=lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
        optimizer=lambda params: torch.optim.AdamW(groups(params), lr, betas=(0.9, 0.95), fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: min(1.0, (t + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, t / steps)))
        ),
        clip_grad_norm=1.0,
        data=(train[:, :-1].contiguous(), train[:, 1:].contiguous()),
        evaluate=(held_out[:, :-1].contiguous(), held_out[:, 1:].contiguous()),
        batch_size=32,
        steps=steps,
    )
