"""One shard beside a run: the gradients of plain autograd, and no trace left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from samestep.job.objective import Objective
from samestep.numerics import random_streams
from samestep.parallel.gradients.linear import write_weight_gradients_once
from samestep.setup.shard_result import Shard, ShardResult, by_model, torchs_own_layers


class Leaving(nn.Module):
    """It leaves values on itself, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.count = nn.Linear(6, 6), [0.0], 0
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(float(x.detach().sum()))
        self.kept["last"] = x
        self.scale = torch.rand(())
        return self.layer(x) * self.scale


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x[:, None])[0][:, 0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3), nn.Tanh())

    def forward(self, x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self.inner, self.first(x), use_reentrant=True)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    model[0].requires_grad_(False)
    model[1].eval()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "leaving": Leaving,
    "recurrent": Recurrent,
    "tied": Tied,
    "reentrant": Reentrant,
    "frozen": frozen,
    "normed": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 6)),
    "parametrized": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 6)),
    "spectral": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.ReLU(inplace=True)),
}


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


def computed(model: nn.Module, batch: Any, rows: int, *stream: int | str) -> ShardResult:
    with torchs_own_layers(model):
        return by_model(model, Objective(loss, None), "float32", Shard(batch, stream, rows))


def bits(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def traces(model: nn.Module) -> list[Any]:
    """All that a module holds, with the identities of its containers' values."""
    found: list[Any] = []
    for module in model.modules():
        for name, value in vars(module).items():
            held = list(value.items()) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
            found.append((name, id(value), repr(held)))
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slots", [False, True])
def test_it_is_what_autograd_gives_and_leaves_no_trace(name: str, slots: bool) -> None:
    torch.manual_seed(1)
    model, x, y = MODELS[name](), torch.randn(5, 6), torch.randn(5, 6)
    place = torch.zeros(36)
    if slots:
        write_weight_gradients_once(model, lambda param: lambda: place.view(6, 6) if param.shape == (6, 6) else None)
    before, state, random = traces(model), {k: bits(v) for k, v in model.state_dict().items()}, random_streams.leave()

    found = computed(model, (x, y), 5, 7, "here")

    assert traces(model) == before
    assert all(torch.equal(value, state[k]) for k, value in model.state_dict().items())
    assert random_streams.same(random_streams.leave(), random)
    assert all(param.grad is None for param in model.parameters())
    assert not place.any()

    for module in model.modules():
        vars(module).pop("forward", None)
    random_streams.enter(7, "here")
    value = loss(model(x), y)
    value.backward()  # type: ignore[no-untyped-call]
    assert found.facts == (float(value.detach()) * 5, 5.0, True)
    wanted = {one: param.grad for one, param in model.named_parameters() if param.requires_grad}
    assert set(found.gradients) == set(wanted)
    for one, grad in wanted.items():
        own = found.gradients[one]
        assert (own is None) == (grad is None)
        assert own is None or (grad is not None and torch.equal(own, grad))
    assert all(torch.equal(found.buffers[one], buffer) for one, buffer in model.named_buffers())


@given(st.integers(0, 2**31 - 1), st.sampled_from(sorted(MODELS)))
def test_it_may_be_computed_any_number_of_times(seed: int, name: str) -> None:
    torch.manual_seed(seed)
    model, x, y = MODELS[name](), torch.randn(4, 6), torch.randn(4, 6)
    first, again = (computed(model, (x, y), 4, seed) for _ in range(2))
    assert first.facts == again.facts
    assert all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(first.gradients.values(), again.gradients.values(), strict=True)
    )


def test_a_failure_leaves_no_trace_either() -> None:
    model, batch = Leaving(), (torch.randn(5, 7), torch.randn(5, 6))
    before, random = traces(model), random_streams.leave()
    with pytest.raises(RuntimeError):
        computed(model, batch, 5, 0)
    assert traces(model) == before
    assert random_streams.same(random_streams.leave(), random)
