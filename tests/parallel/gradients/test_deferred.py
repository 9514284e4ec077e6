"""Deferred gradients of weights are the same, to the bit, and are folded in the same order."""

import gc
import weakref
from collections import deque
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.errors import JobRefused
from samestep.numerics.reduction_tree import local_plan, tree_sum
from samestep.parallel.gradients.deferred import DeferredGradients, deferring
from samestep.parallel.gradients.layout import Layout, untie
from samestep.parallel.gradients.linear import write_weight_gradients_once
from samestep.parallel.gradients.slots import GradientSlots


class Net(nn.Module):
    """A Linear that is used three times, one that some shards leave out, one without rows in some, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.thrice, self.seldom, self.empty = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor, shard: int) -> Tensor:
        for _ in range(3):
            x = self.thrice(x).tanh()
        if shard % 3:
            x = x + self.seldom(x)
        few = self.empty(x[: 2 * (shard % 2)])  # its gradient comes at once when there are no rows
        return self.conv(x.view(-1, 2, 2, 2)).square().mean() + few.square().sum()


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def rows(shard: int) -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(100 + shard))


def plain_gradients(shard: int) -> list[Tensor]:
    model = net()
    model(rows(shard), shard).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def prepared(model: nn.Module, num_published: int) -> tuple[GradientSlots, Layout]:
    layout = Layout(untie(model, list(model.parameters())))
    gradients = GradientSlots(
        layout, [torch.full((layout.nbytes,), 77, dtype=torch.uint8) for _ in range(num_published)]
    )
    entries = {id(entry.param): i for i, entry in enumerate(layout.entries)}
    write_weight_gradients_once(model, lambda param: lambda: gradients.place(entries[id(param)]))
    return gradients, layout


@given(num_shards=st.integers(1, 9), num_published=st.integers(0, 3), data=st.data())
def test_two_parts_of_a_backward_fold_to_the_same_gradient(
    num_shards: int, num_published: int, data: st.DataObject
) -> None:
    """Whenever the second parts come, in shard order."""
    model = net()
    gradients, layout = prepared(model, num_published)
    folded: list[int] = []
    gradients.when_folded = folded.append
    gradients.begin_step([range(num_shards)] * len(layout.entries))
    folds = local_plan(range(num_shards), num_shards).folds
    left: deque[tuple[int, DeferredGradients]] = deque()

    def make() -> None:
        shard, later = left.popleft()
        gradients.resume_shard(shard, 0)
        later.compute()
        gradients.end_shard(range(len(layout.entries)))

    for shard, fold in enumerate(folds):
        gradients.begin_shard(shard, fold, may_wait=True)
        later = DeferredGradients()
        with deferring(later):
            model(rows(shard), shard).backward()
        assert later.has(model.thrice.weight)
        assert not later.has(model.conv.weight)
        gradients.pause_shard(0)
        left.append((shard, later))
        for _ in range(data.draw(st.integers(0, len(left)))):
            make()
    while left:
        make()
    expected = [tree_sum(grads) for grads in zip(*map(plain_gradients, range(num_shards)), strict=True)]
    for i, (entry, wanted) in enumerate(zip(layout.entries, expected, strict=True)):
        assert torch.equal(gradients.total(i), wanted), entry.name
    assert sorted(folded) == list(range(len(layout.entries)))


def test_no_kernel_writes_where_an_earlier_shards_gradient_may_still_lie() -> None:
    gradients, layout = prepared(net(), 2)
    gradients.begin_step([range(4)] * len(layout.entries))
    folds = local_plan(range(4), 4).folds
    assert [bool(fold.into) for fold in folds] == [False, True, False, True]
    gradients.begin_shard(0, folds[0], may_wait=True)
    assert gradients.place(0) is not None
    gradients.pause_shard(0)
    gradients.begin_shard(2, folds[2], may_wait=True)
    assert gradients.place(0) is None


def test_what_is_left_is_no_gradient_yet_and_keeps_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1))
    write_weight_gradients_once(model, lambda param: lambda: None)
    later, x = DeferredGradients(), rows(0)[:, :4].clone().requires_grad_()
    with deferring(later):
        output = model(x)
        kept = weakref.ref(output.grad_fn)
        output.sum().backward()
    del output
    gc.collect()
    assert kept() is None, "the graph is gone"
    assert x.grad is not None, "the input's gradient is there"
    assert all(param.grad is None for param in model.parameters())
    later.compute()
    found = [param.grad for param in model.parameters()]
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1))
    plain.load_state_dict(model.state_dict())
    plain(rows(0)[:, :4]).sum().backward()
    for grad, param in zip(found, plain.parameters(), strict=True):
        assert grad is not None
        assert torch.equal(grad, param.grad)  # type: ignore[arg-type]


def test_a_weight_with_a_hook_is_not_left() -> None:
    """Autograd would call the hook with None, as nothing came."""
    model, seen = net(), list[Tensor]()
    write_weight_gradients_once(model, lambda param: lambda: None)
    model.thrice.weight.register_hook(lambda grad: seen.append(grad.clone()))
    later = DeferredGradients()
    with deferring(later):
        model(rows(1), 1).backward()
    assert not later.has(model.thrice.weight)
    assert later.has(model.seldom.weight)
    assert len(seen) == 1
    assert torch.equal(seen[0], plain_gradients(1)[0])


def test_a_weight_that_is_made_of_others_is_not_left() -> None:
    linear = nn.Linear(8, 8)
    write_weight_gradients_once(linear, lambda param: lambda: None)
    later, scale = DeferredGradients(), torch.ones((), requires_grad=True)
    with deferring(later):
        torch.func.functional_call(linear, {"weight": linear.weight * scale}, rows(0)).sum().backward()
    assert linear.weight.grad is not None
    assert scale.grad is not None


def test_a_weight_with_another_use_in_the_same_stage_is_refused_with_the_way_out() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            return self.linear(x).sum() + F.linear(x, self.linear.weight.square()).sum()

    model = Penalised()
    gradients, layout = prepared(model, 0)
    gradients.begin_step([range(1)] * len(layout.entries))
    gradients.begin_shard(0, local_plan(range(1), 1).folds[0], may_wait=True)
    refused = pytest.raises(JobRefused, match=r'linear.weight is used by its Linear and by other.*order = "1f1b"')
    with refused, deferring(DeferredGradients()):
        model(rows(0)).backward()


def test_a_deferred_gradient_in_a_checkpoint_is_that_of_the_weight_itself() -> None:
    """torch.utils.checkpoint hands backward copies of what forward saved, the weight among it."""

    def gradients(deferred: DeferredGradients | None) -> list[Tensor | None]:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.randn(4, 8)
        write_weight_gradients_once(model, lambda param: lambda: None)
        loss = checkpoint(model, x, use_reentrant=False).square().sum()
        with deferring(deferred):
            loss.backward()
        if deferred is not None:
            deferred.compute()
        return [param.grad for param in model.parameters()]

    for found, wanted in zip(gradients(DeferredGradients()), gradients(None), strict=True):
        assert found is not None
        assert wanted is not None
        assert torch.equal(found, wanted)
