"""Models written by hand, of the kinds that people write: shared layers, sides, branches, objects, derivatives."""

import itertools
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.specimen import ROWS, Specimen, classes, drawn, numbers

Loss = Callable[[nn.Module, Any], Tensor]


def classified(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squared(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def of(
    model: Callable[[], nn.Module], x: Callable[[], Tensor], loss: Loss = classified, y: Callable[[], Tensor] = classes
) -> Callable[[], Specimen]:
    return lambda: Specimen(model, loss, (x(), y()))


def rows(*shape: int) -> Callable[[], Tensor]:
    return lambda: drawn(ROWS, *shape)


def mlp(*sizes: int, last: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers if last else layers[:-1])


# ---------------------------------------------------------------------------------------- one encoder, several inputs


class Siamese(nn.Module):
    """One encoder for both of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = mlp(8, 32, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.encoder(x[:, 0]) - self.encoder(x[:, 1])).abs())


class Triplet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.normalize(self.encoder(part), dim=1) for part in x.unbind(1))


def triplet_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.triplet_margin_loss(*model(batch[0]), margin=0.5)


class SimSiam(nn.Module):
    """Two views through one encoder and one predictor, with a stopped gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor = mlp(8, 32, 16), mlp(16, 8, 16)

    def forward(self, x: Tensor) -> Tensor:
        z = [self.encoder(part) for part in x.unbind(1)]
        p = [self.predictor(part) for part in z]
        return -(F.cosine_similarity(p[0], z[1].detach()).mean() + F.cosine_similarity(p[1], z[0].detach()).mean()) / 2


class SimCLR(nn.Module):
    """Its loss looks at all rows of a shard."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.projector = (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            mlp(8, 16, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = F.normalize(self.projector(self.encoder(torch.cat([x, x.flip(3)]))), dim=1)
        likeness = (z @ z.t() / 0.5).fill_diagonal_(-1e9)
        half = len(x)
        return F.cross_entropy(likeness, torch.cat([torch.arange(half, 2 * half), torch.arange(half)]))


class Critic(nn.Module):
    """WGAN: the critic sees real and made rows in one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(4, 16, 8), mlp(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.generator(torch.randn(len(x), 4))
        return self.critic(made).mean() - self.critic(x).mean() + 0.1 * made.square().mean()


class Recursive(nn.Module):
    """One block four times, as in ALBERT and the universal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.block, self.out = (
            nn.Linear(8, 16),
            nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=True),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for _ in range(4):
            h = self.block(h)
        return self.out(h.mean(1))


class SharedUnderTwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(16, 16)
        self.first = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), shared, nn.ReLU())
        self.second = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), shared, nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.bias = nn.Linear(16, 8), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t(), self.bias)


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 16), nn.Parameter(0.1 * torch.randn(8, 16))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h, mask = self.tokens(x) + self.places, nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        return self.head(h)


def next_word(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())


# --------------------------------------------------------------------------------------------------- drawn in forward


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.deviation, self.decoder = (
            mlp(8, 32, last=True),
            nn.Linear(32, 4),
            nn.Linear(32, 4),
            mlp(4, 32, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mean, log = self.mean(h), self.deviation(h)
        out = self.decoder(mean + torch.randn_like(mean) * (log / 2).exp())
        return F.mse_loss(out, x) - 0.01 * (1 + log - mean.square() - log.exp()).mean()


class VectorQuantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codes, self.decoder = mlp(8, 32, 4), nn.Embedding(16, 4), mlp(4, 32, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        q = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
        out = self.decoder(z + (q - z).detach())
        return F.mse_loss(out, x) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


class Diffusion(nn.Module):
    """A noise predictor with the time as another input."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.inp, self.mid, self.out = (
            nn.Embedding(10, 32),
            nn.Linear(8, 32),
            mlp(32, 32, 32),
            nn.Linear(32, 8),
        )
        self.register_buffer("kept", torch.linspace(0.99, 0.1, 10))

    def forward(self, x: Tensor) -> Tensor:
        t, noise = torch.randint(0, 10, (len(x),)), torch.randn_like(x)
        kept = self.kept[t][:, None]
        h = F.silu(self.inp(kept.sqrt() * x + (1 - kept).sqrt() * noise) + self.time(t))
        return F.mse_loss(self.out(self.mid(h)), noise)


class MaskedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mask, self.out = nn.Linear(4, 16), nn.Parameter(torch.zeros(16)), nn.Linear(16, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.rand(x.shape[:2]) < 0.5
        h = torch.where(hidden[..., None], self.mask, self.inp(x))
        error = (self.out(self.body(h)) - x).square().mean(-1)
        return (error * hidden).sum() / hidden.sum().clamp(min=1)


class Reinforce(nn.Module):
    """A policy gradient: actions are drawn in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = mlp(6, 32, 32, last=True), nn.Linear(32, 4), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        policy, value = torch.distributions.Categorical(logits=self.policy(h)), self.value(h).squeeze(1)
        action = policy.sample()
        reward = (action == 1).float()
        return (
            (-policy.log_prob(action) * (reward - value.detach())).mean()
            + F.mse_loss(value, reward)
            - 0.01 * policy.entropy().mean()
        )


# ------------------------------------------------------------------------------------------------------------ tables


class DeepFM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factors, self.deep = nn.Embedding(60, 1), nn.Embedding(60, 8), mlp(6 * 8, 32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.factors(x + 10 * torch.arange(6))
        pairs = 0.5 * (f.sum(1).square() - f.square().sum(1)).sum(1)
        return self.linear(x + 10 * torch.arange(6)).sum((1, 2)) + pairs + self.deep(f.flatten(1)).squeeze(1)


class TabNetLike(nn.Module):
    """Steps that share the first part of their feature transformers, masks with a prior."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, shared = nn.BatchNorm1d(8), nn.Linear(8, 32)
        self.steps = nn.ModuleList(
            nn.ModuleDict({"shared": shared, "own": nn.Linear(16, 32), "mask": nn.Linear(8, 8)}) for _ in range(3)
        )
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        prior, total, a = torch.ones_like(x), torch.zeros(len(x), 8), x
        for step in self.steps:
            mask = torch.softmax(step["mask"](a) * prior, 1)
            prior = prior * (1.3 - mask)
            h = F.glu(step["own"](F.glu(step["shared"](mask * x))))
            total, a = total + F.relu(h[:, :8]), h[:, 8:]
        return self.out(total)


class FeatureTokens(nn.Module):
    """FT-Transformer: a token for every number and category of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.kinds, self.cls = (
            nn.Parameter(torch.randn(4, 16)),
            nn.Parameter(torch.zeros(4, 16)),
            nn.Embedding(10, 16),
            nn.Parameter(torch.randn(16)),
        )
        self.blocks, self.head = (
            nn.ModuleList(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True) for _ in range(2)),
            nn.Linear(16, 3),
        )

    def forward(self, batch: Any) -> Tensor:
        x, k = batch["numbers"], batch["kinds"]
        h = torch.cat([self.cls.expand(len(x), 1, 16), x[..., None] * self.weight + self.bias, self.kinds(k)], 1)
        for block in self.blocks:
            h = block(h)
        return self.head(h[:, 0])


def table() -> dict[str, Tensor]:
    return {"numbers": drawn(ROWS, 4), "kinds": numbers(ROWS, 3, below=10), "y": classes()}


class DeepCross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cross, self.deep, self.out = (
            nn.ModuleList(nn.Linear(8, 8) for _ in range(3)),
            mlp(8, 32, 16),
            nn.Linear(24, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        c = x
        for layer in self.cross:
            c = x * layer(c) + c
        return self.out(torch.cat([c, self.deep(x)], 1))


class Experts(nn.Module):
    """Mixture of experts by masks, with a router's loss that is left on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts, self.out = (
            nn.Linear(8, 4),
            nn.ModuleList(mlp(8, 16, 8) for _ in range(4)),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(1)
        self.balance = gate.mean(0).square().sum()
        best = gate.argmax(1)
        h = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            chosen = (best == i).nonzero().squeeze(1)
            if len(chosen):
                h = h.index_add(0, chosen, expert(x[chosen]) * gate[chosen, i, None])
        return self.out(h)


def with_balance(model: nn.Module, batch: Any) -> Tensor:
    loss = classified(model, batch)
    return loss + 0.01 * model.balance


# ------------------------------------------------------------------------------------------------------------ graphs


class Graph:
    """Rows are graphs; their nodes and edges are joined with numbers moved, as graph libraries do."""

    def __init__(self, x: Tensor, edges: Tensor, graph: Tensor, y: Tensor) -> None:
        self.x, self.edges, self.graph, self.y = x, edges, graph, y

    def __len__(self) -> int:
        return len(self.y)


def graphs() -> list[tuple[Tensor, Tensor, Tensor]]:
    made = []
    for i in range(ROWS):
        nodes = 3 + i % 4
        ring = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
        made.append((drawn(nodes, 6, seed=i), ring, torch.tensor(i % 3)))
    return made


def joined(items: list[tuple[Tensor, Tensor, Tensor]]) -> Graph:
    sizes = torch.tensor([len(x) for x, _, _ in items])
    starts = sizes.cumsum(0) - sizes
    return Graph(
        torch.cat([x for x, _, _ in items]),
        torch.cat([e + s for (_, e, _), s in zip(items, starts, strict=True)], 1),
        torch.repeat_interleave(torch.arange(len(items)), sizes),
        torch.stack([y for _, _, y in items]),
    )


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.layers, self.out = (
            nn.Linear(6, 16),
            nn.ModuleList(nn.Linear(32, 16) for _ in range(3)),
            nn.Linear(16, 3),
        )

    def forward(self, batch: Graph) -> Tensor:
        h = self.inp(batch.x)
        for layer in self.layers:
            told = torch.zeros_like(h).index_add(0, batch.edges[1], h[batch.edges[0]])
            h = h + torch.relu(layer(torch.cat([h, told], 1)))
        return self.out(torch.zeros(len(batch.y), 16).index_add(0, batch.graph, h))


def graph_net() -> Specimen:
    return Specimen(GraphNet, lambda model, batch: F.cross_entropy(model(batch), batch.y), graphs(), joined)


class SparseGraphNet(nn.Module):
    """A sparse adjacency, built in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, batch: Graph) -> Tensor:
        n = len(batch.x)
        near = torch.sparse_coo_tensor(batch.edges, torch.ones(batch.edges.shape[1]), (n, n))
        h = torch.relu(torch.sparse.mm(near, self.inp(batch.x)))
        h = torch.relu(torch.sparse.mm(near, self.mid(h)))
        return self.out(torch.zeros(len(batch.y), 16).index_add(0, batch.graph, h))


def sparse_graph_net() -> Specimen:
    return Specimen(SparseGraphNet, lambda model, batch: F.cross_entropy(model(batch), batch.y), graphs(), joined)


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.point, self.turn, self.head = (
            nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1)),
            nn.Linear(3, 9),
            nn.Linear(32, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(x.mean(1)).view(-1, 3, 3) + torch.eye(3)
        return self.head(self.point((x @ turn).transpose(1, 2)).amax(2))


# --------------------------------------------------------------------------------------------------------- sequences


class PackedLstm(nn.Module):
    """Sequences of unequal length, longest not first."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rnn, self.out = (
            nn.Embedding(50, 8),
            nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True),
            nn.Linear(32, 3),
        )

    def forward(self, batch: Any) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.tokens(batch[0]), batch[2], batch_first=True, enforce_sorted=False
        )
        h, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=10)
        return self.out(h.amax(1))


def packed_lstm() -> Specimen:
    return Specimen(
        PackedLstm,
        lambda model, batch: F.cross_entropy(model(batch), batch[1]),
        [(numbers(10, below=50, seed=i), torch.tensor(i % 3), torch.tensor(3 + i % 8)) for i in range(ROWS)],
    )


class GruTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rnn, self.drop, self.out = (
            nn.Embedding(50, 16),
            nn.GRU(16, 16, batch_first=True),
            nn.Dropout(0.1),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.rnn(self.tokens(x))[0])).transpose(1, 2)


class Cells(nn.Module):
    """An LSTM cell called once for every place, with teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.cell, self.out = nn.Embedding(20, 16), nn.LSTMCell(16, 16), nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        h, c, found = torch.zeros(len(x), 16), torch.zeros(len(x), 16), []
        for t in range(x.shape[1] - 1):
            h, c = self.cell(self.tokens(x[:, t]), (h, c))
            found.append(self.out(h))
        return torch.stack(found, 2)


def next_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[0][:, 1:])


class Attending(nn.Module):
    """Sequence to sequence with attention; its maps are left on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.encoder, self.decoder, self.attention, self.out = (
            nn.Embedding(30, 16),
            nn.GRU(16, 16, batch_first=True),
            nn.GRU(16, 16, batch_first=True),
            nn.MultiheadAttention(16, 2, batch_first=True),
            nn.Linear(32, 30),
        )

    def forward(self, x: Tensor) -> Tensor:
        memory, last = self.encoder(self.tokens(x))
        h, _ = self.decoder(self.tokens(x.flip(1)), last)
        found, self.maps = self.attention(h, memory, memory)
        return self.out(torch.cat([h, found], 2)).transpose(1, 2)


def reversed_words(model: nn.Module, batch: Any) -> Tensor:
    loss = F.cross_entropy(model(batch[0]), batch[0].flip(1))
    return loss + 0.01 * (model.maps * model.maps.clamp(min=1e-9).log()).sum(-1).mean()


class Ctc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn, self.out = (
            nn.Conv1d(6, 16, 3, padding=1),
            nn.GRU(16, 16, batch_first=True),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(torch.relu(self.conv(x)).transpose(1, 2))[0]).log_softmax(2)


def ctc(model: nn.Module, batch: Any) -> Tensor:
    n = len(batch[0])
    return F.ctc_loss(model(batch[0]).transpose(0, 1), batch[1], torch.full((n,), 12), torch.full((n,), 3))


class PaddedEncoder(nn.Module):
    """Another way through forward when nothing is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.out = nn.Embedding(50, 16, padding_idx=0), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        h, padded = self.tokens(x), x == 0
        for block in self.blocks:
            h = block(h, src_key_padding_mask=padded if padded.any() else None)
        return self.out(h[:, 0])


def padded_words() -> Tensor:
    return numbers(ROWS, 8, below=50, least=1) * (torch.arange(8) < 4 + 4 * (torch.arange(ROWS)[:, None] % 4 > 0))


class LayerDrop(nn.Module):
    """Whole layers are left out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.blocks, self.out = (
            nn.Linear(8, 16),
            nn.ModuleList(mlp(16, 24, 16) for _ in range(4)),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for block in self.blocks:
            if not self.training or torch.rand([]) > 0.3:
                h = h + block(h)
        return self.out(h)


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.decay, self.gate, self.out = (
            nn.Linear(4, 16),
            nn.Parameter(torch.rand(16)),
            nn.Linear(4, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        u, g, h = self.inp(x), torch.sigmoid(self.gate(x)), torch.zeros(len(x), 16)
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.decay) * h + g[:, t] * u[:, t]
        return self.out(h)


class InPlaceAttention(nn.Module):
    """As in longformer: views of layers' outputs that are changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(len(x), -1, 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q /= 2.0
        scores = q @ k.transpose(2, 3)
        scores.masked_fill_(torch.ones(scores.shape[-2:]).triu(1).bool(), -1e9)
        return self.head(self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1))


# ------------------------------------------------------------------------------------------------------------ images


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))  # noqa: E731
        self.down1, self.down2, self.mid, self.up2, self.up1, self.out = (
            conv(3, 8),
            conv(8, 16),
            conv(16, 16),
            conv(32, 8),
            conv(16, 8),
            nn.Conv2d(8, 3, 1),
        )
        self.grow = nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        m = F.interpolate(self.mid(F.max_pool2d(b, 2)), scale_factor=2, mode="bilinear", align_corners=False)
        u = self.up2(torch.cat([b, m], 1))
        return self.out(self.up1(torch.cat([a, self.grow(u)], 1)))


class ResNet(nn.Module):
    class Block(nn.Module):
        def __init__(self, a: int, b: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
            self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
            self.short = (
                nn.Identity()
                if a == b and stride == 1
                else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
            )
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += self.short(x)
            return self.relu(out)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(self.Block(8, 8, 1), self.Block(8, 16, 2), self.Block(16, 32, 2))
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.stem(x)).mean((2, 3)))


class Mixer(nn.Module):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n1, self.n2, self.tokens, self.channels = (
                nn.LayerNorm(16),
                nn.LayerNorm(16),
                mlp(16, 24, 16),
                mlp(16, 32, 16),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.n2(x))

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks, self.norm, self.head = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Sequential(*(self.Block() for _ in range(3))),
            nn.LayerNorm(16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


class DiT(nn.Module):
    """Modulation from one embedding of the condition in every block."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (
                nn.LayerNorm(16, elementwise_affine=False),
                nn.LayerNorm(16, elementwise_affine=False),
            )
            self.attention, self.mlp = nn.MultiheadAttention(16, 4, batch_first=True), mlp(16, 32, 16)
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(16, 6 * 16))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            a, b, g, d, e, f = self.modulation(c)[:, None].chunk(6, 2)
            h = self.norm1(x) * (1 + a) + b
            x = x + g * self.attention(h, h, h, need_weights=False)[0]
            return x + f * self.mlp(self.norm2(x) * (1 + d) + e)

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.label, self.time = nn.Conv2d(3, 16, 4, 4), nn.Embedding(3, 16), mlp(1, 16, 16)
        self.blocks, self.out = nn.ModuleList(self.Block() for _ in range(3)), nn.Linear(16, 48)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        t = torch.rand(len(x), 1)
        c = self.label(y) + self.time(t)
        h = self.patch(x + t[..., None, None] * torch.randn_like(x)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, c)
        return self.out(h)


class Capsules(nn.Module):
    """Routing by agreement: the routing weights are computed without a gradient, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 16, 5, 3), nn.Parameter(0.1 * torch.randn(3, 64, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        u = self.conv(x).flatten(1).view(len(x), 1, -1, 1, 4)[:, :, :64]
        votes = (u @ self.weight[:, : u.shape[2]].transpose(2, 3)[None]).squeeze(3)
        logits = torch.zeros(votes.shape[:3])
        for turn in range(3):
            v = (logits.softmax(1)[..., None] * (votes if turn == 2 else votes.detach())).sum(2)
            v = v * v.norm(dim=-1, keepdim=True) / (1 + v.square().sum(-1, keepdim=True))
            if turn < 2:
                logits += (votes.detach() * v[:, :, None]).sum(-1)
        return v.norm(dim=-1)


class Radiance(nn.Module):
    """A NeRF-like field: samples along rays, and colours that are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.density, self.colour = mlp(3 * 8, 32, 32, last=True), nn.Linear(32, 1), mlp(32 + 3, 16, 3)

    def forward(self, rays: Tensor) -> Tensor:
        depth = torch.linspace(0.1, 2, 8) + 0.1 * torch.rand(len(rays), 8)
        points = rays[:, None, :3] + depth[..., None] * rays[:, None, 3:]
        waves = torch.cat([f(points * 2**k) for k in range(4) for f in (torch.sin, torch.cos)], -1)
        h = self.body(waves)
        alpha = 1 - torch.exp(-F.relu(self.density(h)).squeeze(-1) * 0.2)
        seen = torch.cumprod(torch.cat([torch.ones(len(rays), 1), 1 - alpha + 1e-6], 1), 1)[:, :-1]
        colour = torch.sigmoid(self.colour(torch.cat([h, rays[:, None, 3:].expand(-1, 8, 3)], -1)))
        return ((alpha * seen)[..., None] * colour).sum(1)


class Turned(nn.Module):
    """A spatial transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.turn, self.body = (
            nn.Conv2d(3, 4, 4, 4),
            nn.Linear(64, 6),
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 3)),
        )
        nn.init.zeros_(self.turn.weight)
        self.turn.bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.turn(torch.relu(self.where(x)).flatten(1)).view(-1, 2, 3)
        return self.body(
            F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
        )


class CheckpointedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts, self.out = (
            nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(3)),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=False)
        return self.out(x)


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.body = nn.Sequential(
            norm(nn.Conv2d(3, 8, 3)),
            nn.LeakyReLU(0.1),
            norm(nn.Conv2d(8, 8, 3)),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            norm(nn.Linear(8 * 144, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


# -------------------------------------------------------------------------------------------------------- derivatives


class Flow(nn.Module):
    """RealNVP: couplings, and the logarithm of the determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(mlp(4, 32, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        logs = torch.zeros(len(x))
        for i, net in enumerate(self.couplings):
            a, b = x.chunk(2, 1) if i % 2 else x.chunk(2, 1)[::-1]
            s, t = net(a).chunk(2, 1)
            b = b * torch.tanh(s).exp() + t
            logs, x = logs + torch.tanh(s).sum(1), torch.cat([a, b], 1)
        return (0.5 * x.square().sum(1) - logs).mean()


class Field(nn.Module):
    def __init__(self, inputs: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


def poisson(model: nn.Module, batch: Any) -> Tensor:
    """PINN: the Laplacian by torch.func."""
    found = torch.func.vmap(lambda x: torch.func.hessian(model)(x).diagonal().sum())(batch[0])
    return (found - batch[1]).square().mean()


def heat(model: nn.Module, batch: Any) -> Tensor:
    """PINN: derivatives by autograd.grad with a graph."""
    x = batch[0].clone().requires_grad_()
    first = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)[0][:, 0]
    return (first[:, 1] - 0.1 * second - batch[1]).square().mean()


def forces(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    energy = model(x)
    force = -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
    return F.mse_loss(energy, batch[1]) + F.mse_loss(force, x.detach().sin())


class Ode(nn.Module):
    """Four Runge-Kutta steps of one field."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.field, self.out = nn.Linear(8, 16), mlp(16, 16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for _ in range(4):
            a = self.field(h)
            b = self.field(h + 0.05 * a)
            c = self.field(h + 0.05 * b)
            d = self.field(h + 0.1 * c)
            h = h + 0.1 / 6 * (a + 2 * b + 2 * c + d)
        return self.out(h)


class Equilibrium(nn.Module):
    """A fixed point, found without a gradient until it changes little, and one step with it."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.turn, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inp(x)
        z = torch.zeros_like(u)
        with torch.no_grad():
            for _ in range(20):
                new = torch.tanh(0.5 * self.turn(z) + u)
                if (new - z).abs().max() < 0.05:
                    break
                z = new
        return self.out(torch.tanh(0.5 * self.turn(z) + u))


class HyperNetwork(nn.Module):
    """A network that makes the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.out = mlp(8, 16, 8 * 8 + 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        w = self.maker(x)
        return self.out(torch.tanh(torch.bmm(w[:, :64].view(-1, 8, 8), x[..., None]).squeeze(2) + w[:, 64:]))


class Lora(nn.Module):
    """Adapters beside frozen layers."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.down, self.up = (
                nn.Linear(16, 16).requires_grad_(False),
                nn.Linear(16, 2, bias=False),
                nn.Linear(2, 16, bias=False),
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.base(x) + self.up(self.down(x)))

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*(self.Adapted() for _ in range(3))), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Distilled(nn.Module):
    """A frozen teacher in eval mode beside a student."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = (
            mlp(16, 32, 3).requires_grad_(False),
            nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(x).softmax(1)
        return F.kl_div(self.student(x).log_softmax(1), wanted, reduction="batchmean")


class Fourier(nn.Module):
    """A Fourier layer with complex products of real parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.weight, self.pass_by, self.out = (
            nn.Conv1d(2, 8, 1),
            nn.Parameter(0.1 * torch.randn(8, 8, 4, 2)),
            nn.Conv1d(8, 8, 1),
            nn.Conv1d(8, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        modes = torch.fft.rfft(h)
        low = torch.einsum("bim,iom->bom", modes[..., :4], torch.view_as_complex(self.weight))
        back = torch.fft.irfft(F.pad(low, (0, modes.shape[-1] - 4)), n=x.shape[-1])
        return self.out(F.gelu(back + self.pass_by(h)))


# ------------------------------------------------------------------------------------------------- objects as batches


@dataclass
class Sample:
    x: Tensor
    y: Tensor
    weight: Tensor


class Table(UserDict[str, Any]):
    pass


class Nested:
    __slots__ = ("parts", "y")

    def __init__(self, parts: dict[str, Any], y: Tensor) -> None:
        self.parts, self.y = parts, y


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = mlp(8, 16, 16), mlp(8, 16, 16), nn.Linear(32, 3)

    def forward(self, batch: Nested) -> Tensor:
        return self.out(torch.cat([self.left(batch.parts["left"]), self.right(batch.parts["right"][0])], 1))


def in_dataclass() -> Specimen:
    def loss(model: nn.Module, batch: Sample) -> Tensor:
        return (F.cross_entropy(model(batch.x), batch.y, reduction="none") * batch.weight).mean()

    def collate(items: list[Any]) -> Sample:
        return Sample(*(torch.stack(column) for column in zip(*items, strict=True)))

    return Specimen(
        lambda: mlp(8, 32, 16, 3),
        loss,
        list(zip(drawn(ROWS, 8), classes(), drawn(ROWS, seed=2).abs(), strict=True)),
        collate,
    )


def in_mapping() -> Specimen:
    def collate(items: list[Any]) -> Table:
        return Table(x=torch.stack([x for x, _ in items]), y=torch.stack([y for _, y in items]))

    return Specimen(
        lambda: mlp(8, 32, 16, 3),
        lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]),
        list(zip(drawn(ROWS, 8), classes(), strict=True)),
        collate,
    )


def in_slots() -> Specimen:
    def collate(items: list[Any]) -> Nested:
        x = torch.stack([x for x, _ in items])
        return Nested({"left": x, "right": [x.flip(1), "noted"]}, torch.stack([y for _, y in items]))

    return Specimen(
        TwoInputs,
        lambda model, batch: F.cross_entropy(model(batch), batch.y),
        list(zip(drawn(ROWS, 8), classes(), strict=True)),
        collate,
    )


MODELS: dict[str, Callable[[], Specimen]] = {
    "mlp": of(lambda: mlp(8, 32, 32, 3), rows(8)),
    "siamese": of(Siamese, rows(2, 8), y=lambda: classes(2)),
    "triplet": of(Triplet, rows(3, 8), triplet_loss),
    "simsiam": of(SimSiam, rows(2, 8), lambda model, batch: model(batch[0])),
    "simclr": of(SimCLR, rows(3, 8, 8), lambda model, batch: model(batch[0])),
    "wgan": of(Critic, rows(8), lambda model, batch: model(batch[0])),
    "recursive transformer": of(Recursive, rows(6, 8)),
    "shared under two names": of(SharedUnderTwoNames, rows(8)),
    "tied autoencoder": of(TiedAutoencoder, rows(16), lambda model, batch: F.mse_loss(model(batch[0]), batch[0])),
    "tied language model": of(TiedLanguageModel, lambda: numbers(ROWS, 8, below=50), next_word),
    "vae": of(Vae, rows(8), lambda model, batch: model(batch[0])),
    "vq-vae": of(VectorQuantised, rows(8), lambda model, batch: model(batch[0])),
    "diffusion": of(Diffusion, rows(8), lambda model, batch: model(batch[0])),
    "masked autoencoder": of(MaskedAutoencoder, rows(6, 4), lambda model, batch: model(batch[0])),
    "reinforce": of(Reinforce, rows(6), lambda model, batch: model(batch[0])),
    "deepfm": of(
        DeepFM,
        lambda: numbers(ROWS, 6, below=10),
        lambda model, batch: F.binary_cross_entropy_with_logits(model(batch[0]), batch[1].float()),
        lambda: classes(2),
    ),
    "tabnet-like": of(TabNetLike, rows(8)),
    "ft-transformer": lambda: Specimen(
        FeatureTokens, lambda model, batch: F.cross_entropy(model(batch), batch["y"]), table()
    ),
    "deep and cross": of(DeepCross, rows(8)),
    "experts": of(Experts, rows(8), with_balance),
    "graph net": graph_net,
    "sparse graph net": sparse_graph_net,
    "pointnet": of(PointNet, rows(10, 3)),
    "packed lstm": packed_lstm,
    "gru tagger": of(
        GruTagger, lambda: numbers(ROWS, 8, below=50), classified, lambda: numbers(ROWS, 8, below=5, seed=1)
    ),
    "lstm cell": of(Cells, lambda: numbers(ROWS, 6, below=20), next_of),
    "seq2seq with attention": of(Attending, lambda: numbers(ROWS, 6, below=30), reversed_words),
    "ctc": of(Ctc, rows(6, 12), ctc, lambda: numbers(ROWS, 3, below=5, least=1)),
    "padded encoder": of(PaddedEncoder, padded_words),
    "layer drop": of(LayerDrop, rows(8)),
    "state space": of(StateSpace, rows(6, 4)),
    "in-place attention": of(InPlaceAttention, rows(5, 16)),
    "unet": of(UNet, rows(3, 16, 16), classified, lambda: numbers(ROWS, 16, 16, below=3)),
    "resnet by hand": of(ResNet, rows(3, 16, 16)),
    "mixer": of(Mixer, rows(3, 16, 16)),
    "dit": of(DiT, rows(3, 16, 16), lambda model, batch: model(*batch).square().mean()),
    "capsules": of(Capsules, rows(3, 16, 16), lambda model, batch: F.multi_margin_loss(model(batch[0]), batch[1])),
    "nerf-like": of(
        Radiance, rows(6), squared, lambda: torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(1))
    ),
    "spatial transformer": of(Turned, rows(3, 16, 16)),
    "checkpointed norm": of(CheckpointedNorm, rows(16)),
    "spectral norm": of(Spectral, rows(3, 16, 16)),
    "flow": of(Flow, rows(8), lambda model, batch: model(batch[0])),
    "pinn with torch.func": of(Field, rows(2), poisson, lambda: drawn(ROWS, seed=1)),
    "pinn with autograd.grad": of(Field, rows(2), heat, lambda: drawn(ROWS, seed=1)),
    "forces": of(lambda: Field(3), rows(3), forces, lambda: drawn(ROWS, seed=1)),
    "neural ode": of(Ode, rows(8)),
    "equilibrium": of(Equilibrium, rows(8)),
    "hypernetwork": of(HyperNetwork, rows(8)),
    "lora": of(Lora, rows(16)),
    "distilled": of(Distilled, rows(16), lambda model, batch: model(batch[0])),
    "fourier operator": of(Fourier, rows(2, 16), squared, lambda: drawn(ROWS, 1, 16, seed=1)),
    "dataclass batch": in_dataclass,
    "mapping batch": in_mapping,
    "nested batch": in_slots,
}
