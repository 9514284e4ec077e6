from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.numerics.numerics import shard_rows
from samestep.numerics.reduction_tree import tree_sum
from samestep.parallel.execution.buffers import Buffers, buffer_starts, merged, same_bits


class Counting(nn.Module):
    """Buffers of several kinds, of which one is also known under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("constant", torch.tensor([1.5, -0.0]))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("nothing", None)
        self.inner = nn.Module()
        self.inner.register_buffer("again", self.mean)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1  # in place
        self.mean.lerp_(x.detach().mean(0).double(), 0.1)
        return x * self.inner.again


def build(num_shards: int, model: nn.Module | None = None) -> tuple[nn.Module, Buffers]:
    model = model or Counting()
    size = buffer_starts(list(model.buffers()))[-1]
    return model, Buffers(model, [torch.full((size,), 88, dtype=torch.uint8) for _ in range(num_shards)])


def rows(shard: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(shard)) * 10.0**shard


def step(model: nn.Module, buffers: Buffers, shards: list[int], num_rows: list[int]) -> None:
    changed = []
    for shard in shards:
        buffers.begin_shard()
        model(rows(shard))
        changed.append(buffers.end_shard(shard))
    buffers.merge(changed, num_rows)


@given(num_shards=st.integers(1, 9), num_rows=st.integers(9, 40))
def test_after_a_step_a_buffer_is_the_row_weighted_mean_over_the_tree(num_shards: int, num_rows: int) -> None:
    model, buffers = build(num_shards)
    counts = [len(part) for part in shard_rows(num_rows, num_shards)]
    mean = torch.zeros(3, dtype=torch.float64)
    for number in range(3):
        step(model, buffers, list(range(num_shards)), counts)
        ends = [mean.clone().lerp_(rows(shard).mean(0).double(), 0.1) for shard in range(num_shards)]
        same = all(torch.equal(end, ends[0]) for end in ends)
        weighted = [end * (count / num_rows) for end, count in zip(ends, counts, strict=True)]
        mean = ends[0] if same else tree_sum(weighted)
        assert torch.equal(model.mean, mean)
        assert model.inner.again is model.mean
        assert int(model.steps) == number + 1, "moved once per step, not once per shard"
        assert torch.equal(model.constant, torch.tensor([1.5, -0.0]))


def test_every_shard_starts_from_the_steps_buffers() -> None:
    model, buffers = build(4)
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append((int(module.steps), module.mean.clone())))
    step(model, buffers, [0, 1, 2, 3], [4, 4, 4, 4])
    assert [steps for steps, _ in seen] == [0, 0, 0, 0]
    assert all(not mean.any() for _, mean in seen)


def test_what_backward_saved_stays_as_it_was() -> None:
    """Buffers are rebound, not written over: a shard's backward may come after another's forward."""
    model, buffers = build(2)
    xs = [rows(shard).requires_grad_() for shard in range(2)]
    outputs, used = [], []
    for shard, x in enumerate(xs):
        buffers.begin_shard()
        outputs.append(model(x))
        used.append(model.mean.clone())
        buffers.end_shard(shard)
    for output, x, mean in zip(outputs, xs, used, strict=True):
        output.sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad, mean.float().expand(4, 3))


def test_an_unchanged_buffer_is_not_copied_again() -> None:
    model, buffers = build(3)
    constants = set()
    for shard in range(3):
        buffers.begin_shard()
        model(rows(shard))
        constants.add(model.constant.data_ptr())
        assert buffers.end_shard(shard)[0] == 0
    assert len(constants) == 1


def test_names_are_those_of_the_state_dict_and_shared_ones_once() -> None:
    _, buffers = build(1)
    assert buffers.names == ["constant", "steps", "mean"]


def test_workers_that_read_the_boards_form_the_same_buffers() -> None:
    """One worker did shards 0 and 1, another 2: both merge from what all three wrote."""
    one, other = Counting(), Counting()
    size = buffer_starts(list(one.buffers()))[-1]
    boards = [torch.zeros(size, dtype=torch.uint8) for _ in range(3)]
    parts = [(one, Buffers(one, boards), [0, 1]), (other, Buffers(other, boards), [2])]
    changed: dict[int, bytes] = {}
    for model, buffers, shards in parts:
        for shard in shards:
            buffers.begin_shard()
            model(rows(shard))
            changed[shard] = buffers.end_shard(shard)
    for _, buffers, _ in parts:
        buffers.merge([changed[shard] for shard in range(3)], [4, 4, 3])
    assert torch.equal(one.mean, other.mean)
    alone, buffers = build(3)
    step(alone, buffers, [0, 1, 2], [4, 4, 3])
    assert torch.equal(one.mean, alone.mean)


class Counts(nn.Module):
    """An integer buffer that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.total[0] += int(x.abs().sum())
        return x


def test_whole_numbers_that_disagree_are_an_error_with_the_cure() -> None:
    model, buffers = build(2, nn.Sequential(Counts()))
    with pytest.raises(JobRefused, match=r"integer buffer 0\.total ends differently.*depend on the step"):
        step(model, buffers, [0, 1], [4, 4])


class Growing(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.value
        return x


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)], ids=["shape", "dtype"])
def test_a_buffer_that_changes_its_shape_or_dtype_is_refused(value: Tensor) -> None:
    model, buffers = build(1, Growing(value))
    with pytest.raises(JobRefused, match=r"forward changed buffer seen from torch\.float32 \(2,\)"):
        step(model, buffers, [0], [4])


def test_a_buffer_that_forward_rebinds_is_seen() -> None:
    model, buffers = build(2, Growing(torch.tensor([3.0, 4.0])))
    step(model, buffers, [0, 1], [4, 4])
    assert model.seen.tolist() == [3.0, 4.0]
    assert buffers.values[0] is model.seen


def test_taking_turns_puts_back_what_was_bound() -> None:
    model, buffers = build(2)
    buffers.begin_shard()
    first = buffers.bound()
    model(rows(0))
    buffers.rebind([value.clone() for value in first])
    buffers.begin_shard()
    assert int(model.steps) == 0
    buffers.rebind(first)
    assert int(model.steps) == 1
    assert model.inner.again is model.mean is first[2]


def test_set_makes_a_value_the_steps_buffer() -> None:
    model, buffers = build(1)
    buffers.set(2, torch.ones(3, dtype=torch.float64))
    buffers.begin_shard()
    assert model.mean.tolist() == [1.0, 1.0, 1.0]
    assert model.inner.again is model.mean


def test_a_batchnorms_statistics_move_once_per_step() -> None:
    """Eight shards in turn would move a running mean by eight updates."""
    model, buffers = build(8, nn.BatchNorm1d(3))
    step(model, buffers, list(range(8)), [4] * 8)
    assert int(model.num_batches_tracked) == 1
    expected = torch.stack([rows(shard).mean(0) for shard in range(8)]).mean(0) * 0.1
    torch.testing.assert_close(model.running_mean, expected)


def test_a_common_value_is_taken_as_it_is() -> None:
    """0.1 + 0.1 + 0.1 thirds of 0.1 is not 0.1: no mean where there is nothing to average."""
    value = torch.tensor([0.1, torch.nan, -0.0])
    found = merged([value.clone() for _ in range(3)], [1, 1, 1], "it")
    assert same_bits(found, value)


def test_same_bits_is_bitwise() -> None:
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(3))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert same_bits(torch.arange(6).view(2, 3).t(), torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert same_bits(torch.tensor(True), torch.tensor(True))
    assert same_bits(torch.zeros(0), torch.zeros(0))


def test_boards_hold_every_buffer_aligned() -> None:
    buffers = [torch.zeros(3), torch.tensor(1), torch.zeros(0), torch.zeros(5, dtype=torch.bool)]
    starts = buffer_starts(buffers)
    assert all(start % 64 == 0 for start in starts)
    for buffer, a, b in zip(buffers, starts, starts[1:], strict=False):
        assert b - a >= buffer.numel() * buffer.element_size()
