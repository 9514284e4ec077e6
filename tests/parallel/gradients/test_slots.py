"""Slots, folds and presence: one worker's gradients as they arrive."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.numerics.reduction_tree import Fold, local_plan, tree_sum
from samestep.parallel.gradients.layout import Layout, untie
from samestep.parallel.gradients.linear import write_weight_gradients_once
from samestep.parallel.gradients.slots import GradientSlots


class Net(nn.Module):
    """A Linear, a convolution with channels-last weights, and parameters that not every shard uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.conv = nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
        self.odd = nn.Parameter(torch.randn(8))
        self.never = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, shard: int) -> Tensor:
        y = self.linear(x).relu()
        if shard % 2:
            y = y * self.odd
        return self.conv(y.view(-1, 2, 2, 2)).square().mean()


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def rows(shard: int) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(100 + shard))


def plain_gradients(shard: int) -> list[Tensor]:
    """What autograd gives, zeros for nothing, in the order of the parameters."""
    model = net()
    model(rows(shard), shard).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


class Worker:
    """A model with its gradients in `num_published` slots of flat memory and in loose ones."""

    def __init__(self, model: nn.Module, num_published: int, *, place: bool = False) -> None:
        self.model = model
        self.layout = Layout(untie(model, list(model.parameters())))
        self.slots = [torch.full((self.layout.nbytes,), 77, dtype=torch.uint8) for _ in range(num_published)]
        self.gradients = GradientSlots(self.layout, self.slots)
        if place:
            entries = {id(entry.param): i for i, entry in enumerate(self.layout.entries)}
            write_weight_gradients_once(model, lambda param: lambda: self.gradients.place(entries[id(param)]))

    def step(self, shards: Sequence[int], num_shards: int) -> None:
        self.gradients.begin_step([range(shards[0], shards[-1] + 1)] * len(self.gradients.present))
        folds = local_plan(range(shards[0], shards[-1] + 1), num_shards).folds
        for shard, fold in zip(shards, folds, strict=True):
            self.gradients.begin_shard(shard, fold)
            self.model(rows(shard), shard).backward()
            self.gradients.end_shard()


@given(num_shards=st.integers(1, 9), num_published=st.integers(0, 3), place=st.booleans())
def test_the_folded_gradient_is_the_tree_over_autograds(num_shards: int, num_published: int, place: bool) -> None:
    """Bit for bit, wherever the slots lie and whoever writes them."""
    worker = Worker(net(), num_published, place=place)
    worker.step(range(num_shards), num_shards)
    expected = [tree_sum(grads) for grads in zip(*map(plain_gradients, range(num_shards)), strict=True)]
    for i, (entry, wanted) in enumerate(zip(worker.layout.entries, expected, strict=True)):
        assert torch.equal(worker.gradients.total(i), wanted), entry.name
        assert entry.param.grad is None


def test_a_worker_may_begin_in_the_middle_and_step_after_step() -> None:
    worker = Worker(net(), 2)
    for shards in ([3, 4, 5, 6], [3], [2, 3], [3, 4, 5, 6]):
        worker.step(shards, 7)
        left = local_plan(range(shards[0], shards[-1] + 1), 7).left
        for slot, node in enumerate(left):
            below = range(node.first_shard(), min((node.index + 1) << node.level, 7))
            expected = [tree_sum(grads) for grads in zip(*map(plain_gradients, below), strict=True)]
            for i, wanted in enumerate(expected):
                at = worker.layout.view(worker.slots[slot], i) if slot < 2 else worker.gradients._at(slot, i)
                assert torch.equal(at, wanted), (shards, slot, i)
        worker.gradients.drop()


def test_presence_tells_none_from_zero() -> None:
    worker = Worker(net(), 1)
    names = [entry.name for entry in worker.layout.entries]
    worker.step([0], 1)
    assert {n for n, bit in zip(names, worker.gradients.present, strict=True) if not bit} == {"odd", "never"}
    worker.step([0, 1], 2)
    assert {n for n, bit in zip(names, worker.gradients.present, strict=True) if not bit} == {"never"}
    assert not worker.gradients.total(names.index("never")).any()


def test_one_shards_gradient_is_stored_without_a_copy() -> None:
    """The Linear's weight gradient is written to its slot by the kernel itself."""
    worker = Worker(net(), 1, place=True)
    weight = [entry.name for entry in worker.layout.entries].index("linear.weight")
    seen: list[int] = []
    worker.layout.entries[weight].param.register_hook(lambda grad: seen.append(grad.data_ptr()))
    worker.step([0], 1)
    assert seen == [worker.layout.view(worker.slots[0], weight).data_ptr()]


def test_a_place_is_given_once_per_shard_and_only_for_the_first_to_arrive() -> None:
    worker = Worker(net(), 1)
    gradients = worker.gradients
    gradients.begin_step([range(2)] * len(gradients.present))
    gradients.begin_shard(0, Fold(0, ()))
    place = gradients.place(0)
    assert place is not None
    assert place.shape == worker.layout.entries[0].param.shape
    assert gradients.place(0) is None, "asked for twice: the kernel would write over what is there"
    assert gradients.place(1) is not None
    gradients.begin_shard(1, Fold(1, (0,)))
    assert gradients.place(0) is None, "this one is added, not stored"
    gradients.begin_shard(2, Fold(1, ()))
    assert gradients.place(0) is None, "this slot is not in fabric memory"


def test_a_gradient_that_overtakes_is_refused() -> None:
    worker = Worker(net(), 1)
    worker.gradients.begin_step([range(2)] * len(worker.gradients.present))
    worker.gradients.begin_shard(1, Fold(1, (0,)))
    with pytest.raises(JobRefused, match=r"from shard 1 before shard 0 was done.*sync_batchnorm=False"):
        worker.model(rows(1), 1).backward()


def test_a_sparse_gradient_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True))
    worker = Worker(model, 1)
    worker.gradients.begin_step([range(2)] * len(worker.gradients.present))
    worker.gradients.begin_shard(0, Fold(0, ()))
    with pytest.raises(JobRefused, match=r"the gradient of 0\.weight is sparse"):
        model(torch.tensor([1, 2])).sum().backward()


# -------------------------------------------------------------------------------------- tied weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.middle.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.again(self.middle(self.embedding(ids)).tanh()))


def test_every_name_of_a_tied_parameter_gets_a_leaf_with_the_same_values() -> None:
    torch.manual_seed(0)
    model = Tied()
    ids = torch.tensor([[1, 2, 6]])
    expected = model(ids)
    expected.square().sum().backward()
    whole = model.embedding.weight.grad
    names = untie(model, list(model.parameters()))
    assert [(name, tied) for name, _, tied in names] == [
        ("embedding.weight", None),
        ("middle.weight", None),
        ("head.weight", 0),
        ("again.weight", 1),
    ]
    assert len({id(param) for _, param, _ in names}) == 4
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    model.embedding.weight.grad = None
    found = model(ids)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    assert whole is not None
    torch.testing.assert_close(model.embedding.weight.grad + model.head.weight.grad, whole)


def test_a_tied_weight_of_an_lstm_stays_in_its_list() -> None:
    model = nn.LSTM(3, 3, num_layers=2)
    model.weight_ih_l1 = model.weight_ih_l0
    names = untie(model, list(model.parameters()))
    assert ("weight_ih_l1", 0) in [(name, tied) for name, _, tied in names]
    assert any(param is model.weight_ih_l1 for param in model._flat_weights)
    model(torch.randn(2, 1, 3))[0].sum().backward()
    assert model.weight_ih_l1.grad is not None


def test_only_managed_parameters_are_laid_out() -> None:
    model = Tied()
    model.middle.weight.requires_grad_(False)
    names = untie(model, [p for p in model.parameters() if p.requires_grad])
    assert [name for name, _, _ in names] == ["embedding.weight", "head.weight"]
