"""The sharded update: every optimizer over pieces does, bit for bit, what it does over whole parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from samestep.errors import JobRefused
from samestep.parallel.gradients.job_optimizer import (
    ELEMENTWISE,
    check_optimizer,
    implementation,
    is_elementwise,
    skip_dynamo_in_step,
    skip_dynamo_while_building,
)
from samestep.parallel.gradients.layout import CHUNK, Layout, Piece, share_pieces, storage_order, untie
from samestep.parallel.gradients.sharded_update import ShardedUpdate

Make = Callable[[Iterable[Any]], optim.Optimizer]


class Net(nn.Module):
    """Parameters smaller, larger and much larger than a chunk, of several strides; one name is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Parameter(torch.randn(7))
        self.large = nn.Parameter(torch.randn(150, 463))  # 69,450 elements: 2 chunks and 3,914 elements
        self.conv = nn.Parameter(torch.randn(40, 4, 16, 16).to(memory_format=torch.channels_last))
        self.unused = nn.Parameter(torch.randn(33_000))
        self.scalar = nn.Parameter(torch.randn(()))
        self.tied = self.small


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def gradient(layout: Layout, entry: int, step: int) -> Tensor | None:
    """Of the whole parameter, in its strides. `unused` never has one, `scalar` in every second step."""
    name, param = layout.entries[entry].name, layout.entries[entry].param
    if name == "unused" or (name == "scalar" and step % 2):
        return None
    values = torch.randn(param.shape, generator=torch.Generator().manual_seed(10 * step + entry))
    values[values.abs() < 0.1] = 0.0  # exact zeros take branches of their own
    return torch.empty_like(param, requires_grad=False).copy_(values)


class Worker:
    """An optimizer over the pieces of one worker of `workers`."""

    def __init__(self, make: Make, workers: int, rank: int, *, whole: bool = False, bare: bool = False) -> None:
        self.model = net()
        params = list(self.model.parameters())
        if bare:
            skip_dynamo_while_building()
        optimizer = check_optimizer(make(params))
        if bare:
            skip_dynamo_in_step(optimizer, ELEMENTWISE)
        self.layout = Layout(untie(self.model, params))
        self.pieces = share_pieces(self.layout, workers, whole=whole)[rank]
        self.update = ShardedUpdate(optimizer, self.layout, self.pieces)

    def gradient(self, step: int, piece: Piece) -> Tensor | None:
        grad = gradient(self.layout, piece.entry, step)
        return None if grad is None else storage_order(grad)[piece.start : piece.stop]

    def step(self, step: int) -> None:
        self.update.step(lambda piece: self.gradient(step, piece))


def trained_by(make: Make, workers: int, steps: int, **options: bool) -> dict[str, Tensor]:
    """All parameters and optimizer state after some steps, put together from the workers' pieces."""
    found: dict[str, Tensor] = {}
    for rank in range(workers):
        worker = Worker(make, workers, rank, **options)
        for step in range(steps):
            worker.step(step)
        for piece, kind, key, value in worker.update.state.pieces():
            name = f"{worker.layout.entries[piece.entry].name}/{kind}/{key}"
            if kind == "elementwise":
                whole = found.setdefault(
                    name, torch.full((worker.layout.entries[piece.entry].param.numel(),), torch.nan)
                )
                whole[piece.start : piece.stop] = value
            else:
                found[f"{name}@{piece.start}"] = value.clone()
        for piece in worker.pieces:
            entry = worker.layout.entries[piece.entry]
            whole = found.setdefault(entry.name, torch.full((entry.param.numel(),), torch.nan))
            whole[piece.start : piece.stop] = storage_order(entry.param.detach())[piece.start : piece.stop]
    return found


def trained_plainly(make: Make, steps: int) -> dict[str, Tensor]:
    """torch alone: the same optimizer over the whole parameters of one model."""
    model = net()
    optimizer = make(list(model.parameters()))
    layout = Layout([(name, param, None) for name, param in model.named_parameters()])
    for step in range(steps):
        for i, entry in enumerate(layout.entries):
            entry.param.grad = gradient(layout, i, step)
        optimizer.step()
    return {entry.name: storage_order(entry.param.detach()) for entry in layout.entries}


OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1},
    "SGD, momentum": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2},
    "SGD, nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "SGD, maximize": {"lr": 0.1, "maximize": True, "dampening": 0.3, "momentum": 0.5},
    "Adam": {"lr": 1e-2},
    "Adam, amsgrad": {"lr": 1e-2, "amsgrad": True, "weight_decay": 1e-2},
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Adamax": {"lr": 1e-2},
    "NAdam": {"lr": 1e-2},
    "RAdam": {"lr": 1e-2, "weight_decay": 1e-2},
    "Adagrad": {"lr": 1e-2, "initial_accumulator_value": 0.1, "lr_decay": 0.01},
    "Adadelta": {"lr": 1.0},
    "RMSprop": {"lr": 1e-3},
    "RMSprop, centered": {"lr": 1e-3, "centered": True, "momentum": 0.9},
    "Rprop": {"lr": 1e-2},
    "ASGD": {"lr": 1e-2, "t0": 2, "lambd": 1e-2},
}
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


def variants() -> list[Any]:
    found = []
    for name, options in OPTIONS.items():
        kind = name.split(",", maxsplit=1)[0]
        for flag in ("", "foreach", "fused"):
            if flag != "fused" or kind in FUSED:
                chosen = {**options, "foreach": flag == "foreach"} if flag != "fused" else {**options, "fused": True}
                found.append(pytest.param(kind, chosen, id=" ".join([name, flag]).strip()))
    return found


@pytest.mark.parametrize(("kind", "options"), variants())
def test_an_update_over_pieces_is_the_update_bit_for_bit(kind: str, options: dict[str, Any]) -> None:
    cls = getattr(optim, kind)
    assert cls in ELEMENTWISE

    def make(params: Iterable[Any]) -> optim.Optimizer:
        return cls(params, **options)

    plain = trained_plainly(make, 4)
    alone = trained_by(make, 1, 4, bare=True)
    for name, value in plain.items():
        assert torch.equal(alone[name], value), name
    for workers in (2, 3):
        over = trained_by(make, workers, 4)
        for name, value in alone.items():
            assert name in over, name
            assert torch.equal(over[name], value), f"{name} on {workers} workers"


def test_every_class_that_counts_as_elementwise_is_tested() -> None:
    assert {getattr(optim, name.split(",")[0]) for name in OPTIONS} == set(ELEMENTWISE)


def test_the_update_makes_the_pieces_that_this_test_is_about() -> None:
    model = net()
    layout = Layout(untie(model, list(model.parameters())))
    cut = [piece for share in share_pieces(layout, 3, whole=False) for piece in share if piece.start]
    assert cut
    assert all(piece.start % CHUNK == 0 for piece in cut)


def rule_of_two_groups(params: Iterable[Any]) -> optim.Optimizer:
    matrices = [p for p in params if p.ndim >= 2]
    others = [p for p in params if p.ndim < 2]
    return optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 0.5}])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_groups_by_number_of_dimensions_stay_what_they_are(workers: int) -> None:
    """Slices are 1-D; the groups were made of the real parameters."""
    plain, over = trained_plainly(rule_of_two_groups, 3), trained_by(rule_of_two_groups, workers, 3)
    for name, value in plain.items():
        assert torch.equal(over[name], value), name
    worker = Worker(rule_of_two_groups, workers, 0)
    assert worker.update.group_names == [["large", "conv"], ["small", "unused", "scalar"]]
    assert [group["weight_decay"] for group in worker.update.state.hyperparameters()] == [0.1, 0.0]
    assert all("params" not in group for group in worker.update.state.hyperparameters())


def test_state_exists_once_over_all_workers() -> None:
    """ZeRO stage 1: the workers' moments together are as large as the parameters with a gradient."""
    sizes = []
    for rank in range(3):
        worker = Worker(lambda params: optim.SGD(params, lr=0.1, momentum=0.9), 3, rank)
        worker.step(0)
        sizes.append(sum(value.numel() for _, _, _, value in worker.update.state.pieces()))
    assert sum(sizes) == sum(p.numel() for name, p in net().named_parameters() if name != "unused")


def with_state_from_the_start(params: Iterable[Any]) -> optim.Optimizer:
    """Adagrad makes its state when it is built; here every element has its own."""
    optimizer = optim.Adagrad(params, lr=0.1)
    for state in optimizer.state.values():
        state["sum"].copy_(torch.arange(1.0, state["sum"].numel() + 1).view(state["sum"].shape))
    return optimizer


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_state_that_was_there_before_is_cut_as_its_parameter(workers: int) -> None:
    plain, over = trained_plainly(with_state_from_the_start, 2), trained_by(with_state_from_the_start, workers, 2)
    for name, value in plain.items():
        assert torch.equal(over[name], value), name


class Centralised(optim.Optimizer):
    """Subtracts the gradient's mean over the whole parameter: not elementwise."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    state = self.state[param]
                    state["count"] = state.get("count", 0) + 1
                    state["mean"] = float(param.grad.mean())
                    state["running"] = 0.9 * state.get("running", torch.zeros(())) + param.grad.mean()
                    param.data.sub_(param.grad - param.grad.mean(), alpha=group["lr"])


@pytest.mark.parametrize("workers", [2, 3])
def test_an_unknown_class_runs_whole_parameter_by_parameter(workers: int) -> None:
    assert not is_elementwise(Centralised(net().parameters()))
    plain, over = trained_plainly(Centralised, 3), trained_by(Centralised, workers, 3, whole=True)
    alone = trained_by(Centralised, 1, 3, whole=True)
    for name, value in plain.items():
        assert torch.equal(over[name], value), name
    for name, value in alone.items():
        assert torch.equal(over[name], value), name
    assert {name.split("/")[1] for name in over if "/" in name} == {"int", "float", "tensor"}


@pytest.mark.parametrize(("kind", "options"), variants())
def test_state_that_was_put_back_goes_on_as_if_nothing_had_been(kind: str, options: dict[str, Any]) -> None:
    def make(params: Iterable[Any]) -> optim.Optimizer:
        return getattr(optim, kind)(params, **options)

    first, second = Worker(make, 2, 0), Worker(make, 2, 0)
    for step in range(2):
        first.step(step)
    for (piece, target), (_, other) in zip(first.update.targets, second.update.targets, strict=True):
        other.data.copy_(target.data)
        assert piece in second.pieces
    for piece, state_kind, key, value in list(first.update.state.pieces()):
        second.update.state.restore(piece, state_kind, key, value)
    for step in (2, 3):
        first.step(step)
        second.step(step)
    for (_, a), (_, b) in zip(first.update.targets, second.update.targets, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.update.state.pieces(), second.update.state.pieces(), strict=True):
        assert a[:3] == b[:3]
        assert torch.equal(a[3], b[3])


def test_gradients_are_taken_away_after_the_update() -> None:
    worker = Worker(lambda params: optim.SGD(params, lr=0.1), 2, 0)
    worker.step(0)
    assert all(target.grad is None for _, target in worker.update.targets)


def test_a_piece_is_a_part_of_the_parameter_itself() -> None:
    worker = Worker(lambda params: optim.SGD(params, lr=0.1), 3, 1)
    for piece, target in worker.update.targets:
        param = worker.layout.entries[piece.entry].param
        assert target.data_ptr() == param.data_ptr() + piece.start * param.element_size()
        assert (target is param) == (piece.stop - piece.start == param.numel())


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (optim.LBFGS([nn.Parameter(torch.zeros(2))]), "LBFGS evaluates the whole model several times per step"),
        (optim.SparseAdam([nn.Parameter(torch.zeros(2))]), "SparseAdam needs sparse gradients"),
        (torch.zeros(2), "returned a Tensor, not a torch.optim.Optimizer"),
        (None, "returned a NoneType"),
    ],
    ids=["LBFGS", "SparseAdam", "no optimizer", "nothing"],
)
def test_what_cannot_be_sharded_is_refused(optimizer: Any, said: str) -> None:
    with pytest.raises(JobRefused, match=said):
        check_optimizer(optimizer)


class NeedsClosure(Centralised):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(JobRefused, match="NeedsClosure evaluates the whole model"):
        check_optimizer(NeedsClosure(net().parameters()))


class MyAdam(optim.Adam):
    pass


def test_a_subclass_of_a_known_class_counts_as_unknown() -> None:
    assert is_elementwise(optim.Adam(net().parameters()))
    assert not is_elementwise(MyAdam(net().parameters()))


def test_the_implementation_is_named() -> None:
    params = list(net().parameters())
    assert implementation(optim.SGD(params, lr=0.1)) == "SGD"
    assert implementation(optim.SGD(params, lr=0.1, fused=True)) == "SGD/fused"
    assert implementation(optim.AdamW(params, foreach=True)) == "AdamW/foreach"


class Pickled(Centralised):
    def step(self, closure: Any = None) -> None:
        self.state[self.param_groups[0]["params"][0]]["what"] = object()


def test_state_without_a_plain_form_is_refused_by_name() -> None:
    worker = Worker(Pickled, 1, 0, whole=True)
    worker.step(0)
    with pytest.raises(JobRefused, match="Pickled keeps 'what' as a object"):
        list(worker.update.state.pieces())
