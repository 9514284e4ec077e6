"""Buffers that shards end differently take a value that suits them, or are refused by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.parallel.execution.buffers import Buffers, buffer_starts, merged


def merge(model: nn.Module, ends: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The model's buffers after a step whose shards end with `ends`."""
    size = buffer_starts(list(model.buffers()))[-1]
    buffers = Buffers(model, [torch.zeros(size, dtype=torch.uint8) for _ in ends])
    changed = []
    for shard, end in enumerate(ends):
        buffers.begin_shard()
        for name, buffer in model.named_buffers():
            buffer.copy_(end.get(name, buffer))
        changed.append(buffers.end_shard(shard))
    buffers.merge(changed, [4] * len(ends))
    return dict(model.named_buffers())


def directions(seed: int, *shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


SPECTRAL = {
    "parametrized": (
        lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)),
        ("parametrizations.weight.0._u", "parametrizations.weight.0._v"),
    ),
    "by a hook": (lambda: torch.nn.utils.spectral_norm(nn.Linear(5, 3)), ("weight_u", "weight_v")),
}


@pytest.mark.parametrize("kind", SPECTRAL)
def test_power_iterations_go_on_from_the_first_shards_vectors(kind: str) -> None:
    make, (u, v) = SPECTRAL[kind]
    ends = [{u: directions(shard, 3), v: directions(9 + shard, 5)} for shard in range(3)]
    found = merge(make(), ends)
    assert torch.equal(found[u], ends[0][u])
    assert torch.equal(found[v], ends[0][v])


@given(shards=st.integers(2, 5), seed=st.integers(0, 99))
def test_an_observer_has_seen_what_all_shards_have(shards: int, seed: int) -> None:
    ends = [
        {"min_val": -torch.rand((), generator=made), "max_val": torch.rand((), generator=made)}
        for made in (torch.Generator().manual_seed(seed + 100 * shard) for shard in range(shards))
    ]
    found = merge(torch.ao.quantization.MinMaxObserver(), ends)
    assert found["min_val"] == min(end["min_val"] for end in ends)
    assert found["max_val"] == max(end["max_val"] for end in ends)


class Own(nn.Module):
    """Code of somebody's own."""

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.register_buffer(name, value)


def generated(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DESTROYED = {
    "a direction": ("u", [directions(shard, 7) for shard in range(2)], "vectors of length 1"),
    "rows of directions": ("prototypes", [directions(shard, 4, 7) for shard in range(2)], "vectors of length 1"),
    "complex phases": ("w", [torch.polar(torch.ones(3), generated(s, 3))[:, None] for s in range(2)], "length 1"),
    "counts": ("seen", [torch.tensor([3.0, 8.0]), torch.tensor([4.0, 8.0])], "whole numbers"),
    "a choice": ("chosen", [torch.eye(3)[0], torch.eye(3)[2]], "whole numbers"),
    "signs": ("sign", [torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])], "whole numbers"),
    "the greatest": ("running_max", [torch.rand(3), torch.rand(3)], "an extreme"),
    "the greatest by size": ("amax_history", [torch.rand(3), torch.rand(3)], "an extreme"),
    "integers": ("steps", [torch.tensor(3), torch.tensor(4)], "integer buffer"),
}


@pytest.mark.parametrize("kind", DESTROYED)
def test_what_a_mean_destroys_is_refused_by_name(kind: str) -> None:
    name, ends, reason = DESTROYED[kind]
    model = nn.Sequential(Own(name, torch.zeros_like(ends[0])))
    with pytest.raises(JobRefused, match=rf"buffer 0\.{name} ends differently in different shards.*{reason}|{reason}"):
        merge(model, [{f"0.{name}": end} for end in ends])


@pytest.mark.parametrize("kind", DESTROYED)
def test_where_all_shards_agree_nothing_is_refused(kind: str) -> None:
    name, ends, _ = DESTROYED[kind]
    found = merge(Own(name, torch.zeros_like(ends[0])), [{name: ends[0]} for _ in range(3)])
    assert torch.equal(found[name], ends[0])


@pytest.mark.parametrize("observer", ["HistogramObserver", "FakeQuantize"])
def test_observers_whose_statistics_cannot_be_joined_are_refused(observer: str) -> None:
    model = getattr(torch.ao.quantization, observer)()
    name = "scale" if observer == "FakeQuantize" else "histogram"
    ends = [{name: torch.rand_like(dict(model.named_buffers())[name])} for _ in range(2)]
    with pytest.raises(JobRefused, match=f"buffer {name} of a {observer} ends differently.*moving average"):
        merge(model, ends)


@given(values=st.lists(st.floats(-50, 50, width=32).filter(lambda x: x % 1), min_size=2, max_size=6, unique=True))
def test_running_means_are_averaged(values: list[float]) -> None:
    ends = [torch.tensor([value, 0.5]) for value in values]
    found = merged(ends, [1] * len(ends), "norm.running_mean")
    torch.testing.assert_close(found, torch.stack(ends).mean(0), rtol=1e-5, atol=1e-5)
