"""A shard's sum and weight, against what torch's own loss says of the whole batch."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.job.loss_checks import ignored_label_in
from samestep.job.objective import Objective, ShardLoss
from samestep.job.torch_losses import TorchLoss
from samestep.numerics.numerics import shard_rows
from samestep.numerics.reduction_tree import tree_sum

ROWS, CLASSES = 13, 5
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 1.7])


class Same(nn.Module):
    """A model that returns its input, so that the loss's own gradient can be seen."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def over_shards(objective: Objective, x: Tensor, y: Tensor, num_shards: int) -> tuple[float, Tensor]:
    """The batch's loss and its gradient with respect to x, put together from shards as a step does."""
    shards: list[ShardLoss] = []
    inputs = []
    for part in shard_rows(len(x), num_shards):
        inputs.append(x[part.start : part.stop].clone().requires_grad_())
        shards.append(objective(Same(), (inputs[-1], y[part.start : part.stop]), len(part)))
    weight = 1.0 if objective.is_plain_sum else tree_sum([shard.weight for shard in shards])
    for shard in shards:
        start = 1.0 if objective.is_plain_sum else shard.seed(len(x))
        shard.objective.backward(torch.tensor(start, dtype=x.dtype))
    grad = torch.cat([part.grad for part in inputs])
    if not (objective.is_plain_sum or shards[0].is_mean):
        grad *= len(x) / weight  # what the division by rows got wrong
    return tree_sum([shard.sum for shard in shards]) / weight, grad


def check(loss: Callable[..., Any], x: Tensor, y: Tensor, num_shards: int) -> None:
    objective = Objective(loss, None)
    whole = x.clone().requires_grad_()
    expected = loss(whole, y)
    expected.backward()
    found, grad = over_shards(objective, x, y, num_shards)
    assert found == pytest.approx(float(expected.detach()), rel=1e-10, abs=1e-12)
    torch.testing.assert_close(grad, whole.grad, rtol=1e-10, atol=1e-12)


def logits(shape: str) -> Tensor:
    dims = {"rows": (), "positions": (4,), "pixels": (3, 2)}[shape]
    return torch.randn(ROWS, CLASSES, *dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def labels(shape: str, ignored: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = logits(shape)
    found = torch.randint(0, CLASSES, (ROWS, *x.shape[2:]), generator=generator)
    if ignored is not None:
        found[torch.rand(found.shape, generator=generator) < 0.4] = ignored
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class weights": {"weight": WEIGHTS.double()},
    "ignore_index": {"ignore_index": 2},
    "both": {"weight": WEIGHTS.double(), "ignore_index": 0},
    "ignore_index=-1": {"ignore_index": -1},
    "sum": {"reduction": "sum", "weight": WEIGHTS.double()},
}


@pytest.mark.parametrize("num_shards", [1, 5])
@pytest.mark.parametrize("form", ["module", "function"])
@pytest.mark.parametrize("shape", ["rows", "positions", "pixels"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_over_shards_is_torchs_of_the_batch(
    options: str, shape: str, form: str, num_shards: int, smoothing: float
) -> None:
    chosen = {**OPTIONS[options], "label_smoothing": smoothing}
    loss = nn.CrossEntropyLoss(**chosen) if form == "module" else partial(F.cross_entropy, **chosen)
    check(loss, logits(shape), labels(shape, chosen.get("ignore_index", -100)), num_shards)
    assert Objective(loss, None).is_plain_sum == (chosen.get("reduction") == "sum")


@pytest.mark.parametrize("num_shards", [1, 5])
@pytest.mark.parametrize("form", ["module", "function"])
@pytest.mark.parametrize("shape", ["rows", "positions", "pixels"])
@pytest.mark.parametrize("options", OPTIONS)
def test_nll_over_shards_is_torchs_of_the_batch(options: str, shape: str, form: str, num_shards: int) -> None:
    chosen = OPTIONS[options]
    loss = nn.NLLLoss(**chosen) if form == "module" else partial(F.nll_loss, **chosen)
    check(loss, logits(shape).log_softmax(1), labels(shape, chosen.get("ignore_index", -100)), num_shards)


@pytest.mark.parametrize("num_shards", [1, 5])
@pytest.mark.parametrize("shape", ["rows", "positions", "pixels"])
@pytest.mark.parametrize("weight", [None, WEIGHTS.double()], ids=["plain", "class weights"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_probability_targets(weight: Tensor | None, shape: str, num_shards: int, smoothing: float) -> None:
    targets = logits(shape).flip(0).softmax(1)
    check(nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing), logits(shape), targets, num_shards)


def test_the_bare_functions_are_known_too() -> None:
    check(F.cross_entropy, logits("rows"), labels("rows", -100), 4)
    check(F.nll_loss, logits("rows").log_softmax(1), labels("rows", -100), 4)


def test_labels_of_minus_100_count_for_nothing_by_default() -> None:
    y = labels("rows", -100)
    found = Objective(nn.CrossEntropyLoss(), None)(Same(), (logits("rows"), y), ROWS)
    assert found.weight == int((y != -100).sum()) < ROWS


def test_a_shard_without_any_label_weighs_nothing_and_is_no_nan() -> None:
    y = labels("rows", None)
    y[:5] = -100
    check(nn.CrossEntropyLoss(), logits("rows"), y, 5)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.L1Loss(),
        nn.SmoothL1Loss(),
        nn.HuberLoss(),
        nn.BCEWithLogitsLoss(),
        nn.SoftMarginLoss(),
        nn.PoissonNLLLoss(),
        nn.MSELoss(reduction="sum"),
        nn.BCEWithLogitsLoss(reduction="sum"),
        F.mse_loss,
        partial(F.mse_loss, reduction="sum"),
        lambda outputs, targets: ((outputs - targets) ** 2).mean(),
        lambda outputs, targets: (((outputs - targets) ** 2).sum(), outputs.numel()),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),  # addresses differ between processes of pytest
)
def test_other_losses_are_means_over_rows_sums_or_pairs(loss: Callable[..., Any], num_shards: int) -> None:
    x = logits("rows")
    y = (logits("rows").flip(0) > 0).double()

    def value(outputs: Tensor, targets: Tensor) -> Tensor:
        found = loss(outputs, targets)
        return found[0] / found[1] if isinstance(found, tuple) else found

    objective = Objective(loss, None)
    whole = x.clone().requires_grad_()
    value(whole, y).backward()
    found, grad = over_shards(objective, x, y, num_shards)
    assert found == pytest.approx(float(value(x, y)), rel=1e-10)
    torch.testing.assert_close(grad, whole.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_forward_may_return_a_mean_or_a_pair(shards: int) -> None:
    x, y = logits("positions"), labels("positions", None)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(4)) < 0.5

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        each = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        return (each * batch["mask"]).sum(), batch["mask"].sum()

    objective = Objective(None, forward)
    found = []
    for part in shard_rows(ROWS, shards):
        batch = {name: value[part.start : part.stop] for name, value in (("x", x), ("y", y), ("mask", mask))}
        found.append(objective(Same(), batch, len(part)))
    assert not any(loss.is_mean for loss in found)
    total = tree_sum([loss.sum for loss in found]) / tree_sum([loss.weight for loss in found])
    assert total == pytest.approx(float(F.cross_entropy(x, y, reduction="none")[mask].mean()))


@given(rows=st.integers(1, 50), batch_rows=st.integers(1, 10**4), value=st.floats(-10, 10))
def test_a_mean_is_worth_its_rows_and_a_sum_itself(rows: int, batch_rows: int, value: float) -> None:
    mean = ShardLoss(torch.tensor(value, dtype=torch.float64), float(rows), is_mean=True)
    of_sum = ShardLoss(torch.tensor(value, dtype=torch.float64), float(rows), is_mean=False)
    assert mean.sum == value * rows
    assert of_sum.sum == value
    assert mean.seed(batch_rows) == rows / batch_rows
    assert of_sum.seed(batch_rows) == 1.0 / batch_rows


# ------------------------------------------------------------------------------- what is not taken apart


class Scaled(nn.CrossEntropyLoss):
    """A subclass may do anything in its forward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return 3.0 * super().forward(input, target)


def test_subclasses_and_positional_partials_are_not_guessed_at() -> None:
    assert TorchLoss.recognise(Scaled()) is None
    assert TorchLoss.recognise(partial(F.cross_entropy, logits("rows"))) is None
    assert TorchLoss.recognise(nn.CrossEntropyLoss(reduction="none")) is None


def test_a_plain_mean_over_labels_of_which_some_are_ignored_is_refused_with_the_cure() -> None:
    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["labels"])

    batch = {"x": logits("rows"), "labels": labels("rows", -100)}
    with pytest.raises(JobRefused, match=r"batch\['labels'\] holds labels of -100.*reduction='sum'"):
        Objective(None, forward)(Same(), batch, ROWS)
    batch["labels"] = labels("rows", None)
    assert Objective(None, forward)(Same(), batch, ROWS).is_mean


def test_where_an_ignored_label_is_found() -> None:
    bad = torch.tensor([1, -100])
    assert ignored_label_in((torch.full((2,), -100.0), bad)) == "batch[1]"
    assert ignored_label_in({"ids": torch.zeros(2), "y": bad.int()}) == "batch['y']"
    assert ignored_label_in(bad) == "the batch"
    assert ignored_label_in((torch.full((2,), -100.0), torch.tensor([1, -1]), "text")) is None


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (torch.zeros(3), r"a tensor of shape \(3,\)"),
        (1.5, "a float"),
        (None, "a NoneType"),
        ((torch.zeros(2), 4), r"a tensor of shape \(2,\)"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(result: Any, said: str) -> None:
    with pytest.raises(JobRefused, match=f"the loss is {said}, a step needs one number"):
        Objective(None, lambda model, batch: result)(Same(), torch.zeros(2), 2)


def test_a_loss_of_one_element_is_a_scalar() -> None:
    loss = Objective(None, lambda model, batch: torch.ones(1, 1))(Same(), torch.zeros(2), 2)
    assert loss.objective.shape == ()


def test_a_job_needs_either_loss_or_forward() -> None:
    with pytest.raises(JobRefused, match="neither given"):
        Objective(None, None)
    with pytest.raises(JobRefused, match="both given"):
        Objective(F.mse_loss, lambda model, batch: torch.zeros(()))


def test_a_loss_with_parameters_of_its_own_is_refused() -> None:
    with pytest.raises(JobRefused, match="Sequential has parameters of its own"):
        Objective(nn.Sequential(nn.Linear(2, 1)), None)
