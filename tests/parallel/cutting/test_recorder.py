"""A forward written down and done again: the same kernels, and no silent surprises."""

import copy
import functools
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from samestep.errors import JobRefused
from samestep.parallel.cutting.recorder import record
from samestep.parallel.cutting.recording import Recording, Value, batch_tensors, perform
from samestep.parallel.cutting.signature import signature

Forward = Callable[[nn.Module, Any], Any]


def run(recording: Recording, model: nn.Module, batch: Any) -> dict[int, Tensor]:
    values = dict(enumerate(batch_tensors(batch)))
    for call in recording.calls:
        perform(call, values, model)
    return values


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = self.second(y) * self.scale + self.shift
        y += 1
        return y.view(len(x), -1).t()


def test_done_again_it_has_the_same_bits_and_gradients() -> None:
    model, x = Net(), torch.randn(5, 4)
    recording = record(model, lambda m, b: m(b[0]), (x,), ["second.2"], [])
    torch.manual_seed(3)
    expected = model(x)
    expected.square().sum().backward()
    grads = {name: param.grad for name, param in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(3)
    found = run(recording, model, (x,))[recording.result.index]
    found.square().sum().backward()
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    assert all(torch.equal(param.grad, grads[name]) for name, param in model.named_parameters())  # type: ignore[arg-type]


def test_modules_without_a_cut_inside_stay_whole() -> None:
    recording = record(Net(), lambda m, b: m(b[0]), (torch.randn(5, 4),), [], ["first"])
    modules = [call.what for call in recording.calls if isinstance(call.what, str)]
    assert modules == ["first", "second"]
    recording = record(Net(), lambda m, b: m(b[0]), (torch.randn(5, 4),), ["second.1"], [])
    assert [str(call) for call in recording.calls][:4] == ["first", "relu", "second.0", "second.1"]
    assert [call.stage for call in recording.calls][:4] == [0, 0, 0, 1]


def test_parameters_and_buffers_that_the_code_around_uses_are_named() -> None:
    recording = record(Net(), lambda m, b: m(b[0]), (torch.randn(5, 4),), [], [])
    assert {name for call in recording.calls for name in call.names} == {"scale", "shift"}


def test_changes_in_place_are_noticed() -> None:
    recording = record(Net(), lambda m, b: m(b[0]), (torch.randn(5, 4),), [], [])
    (change,) = [call for call in recording.calls if call.changes]
    assert change.changes <= change.takes


def branching(model: nn.Module, batch: Any) -> Tensor:
    if batch[0].sum() > 0:
        return model(batch[0])
    return -model(batch[0])


def test_a_decision_on_a_value_is_checked_every_time() -> None:
    model = nn.Linear(2, 1)
    recording = record(model, branching, (torch.ones(3, 2),), [], [])
    run(recording, model, (torch.full((3, 2), 5.0),))
    with pytest.raises(JobRefused, match=r"value at test_recorder.py:\d+ and found True when it was cut, False now"):
        run(recording, model, (-torch.ones(3, 2),))


class Passes(nn.Module):
    def forward(self, x: Tensor, other: object) -> Tensor:
        return x


@pytest.mark.parametrize("other", [iter([1]), threading.Lock()], ids=["iterator", "lock"])
def test_what_cannot_be_opened_does_not_cross_a_cut(other: object) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Passes())
    forward: Forward = lambda m, b: m[1](m[0](b[0]), other)  # noqa: E731
    with pytest.raises(JobRefused, match=r"1 \(called at test_recorder.py:\d+\) is given a \w+, and only tensors"):
        record(model, forward, (torch.ones(3, 2),), [], ["1"])


class Cache:
    def __init__(self) -> None:
        self.layers: list[Tensor] = []
        self.length = 0


class Attends(nn.Linear):
    """A layer that fills a cache, and reads what others have put there."""

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        y = super().forward(x)
        cache.layers.append(y * 2)
        cache.length += 1
        return y + sum(cache.layers) * cache.length  # type: ignore[no-any-return]


def test_a_cache_goes_from_call_to_call_and_begins_anew_with_every_batch() -> None:
    model = nn.ModuleList([Attends(2, 2) for _ in range(3)])

    def forward(m: Any, batch: Any) -> Tensor:
        x, cache = batch[0], Cache()
        for layer in m:
            x = layer(x, cache)
        return x + cache.layers[0]

    recording = record(model, forward, (torch.ones(3, 2),), ["1", "2"], [])
    for x in (torch.randn(3, 2), torch.randn(3, 2)):
        assert torch.equal(run(recording, model, (x,))[recording.result.index], forward(model, (x,)))


def test_a_tensor_that_belongs_to_nobody_stands_for_itself() -> None:
    model, table = nn.Linear(2, 2), torch.eye(2)
    forward: Forward = lambda m, b: m(b[0]) @ table  # noqa: E731
    recording = record(model, forward, (torch.ones(3, 2),), [], [])
    table.mul_(3.0)
    assert torch.equal(
        run(recording, model, (torch.ones(3, 2),))[recording.result.index], forward(model, (torch.ones(3, 2),))
    )


def test_weights_may_be_other_ones_when_it_is_done_again() -> None:
    model, x = Net(), torch.randn(5, 4)
    recording = record(model, lambda m, b: m(b[0]), (x,), ["second.0"], [])
    torch.manual_seed(5)
    other = Net()
    torch.manual_seed(3)
    expected = other(x)
    torch.manual_seed(3)
    assert torch.equal(run(recording, other, (x,))[recording.result.index], expected)


def test_modules_are_as_they_were_when_the_recording_is_done_or_failed() -> None:
    plain = nn.Module.__call__
    record(nn.Linear(2, 2), lambda m, b: m(b[0]), (torch.ones(3, 2),), [], [])
    with pytest.raises(ZeroDivisionError):
        record(nn.Linear(2, 2), lambda m, b: 1 // 0, (torch.ones(3, 2),), [], [])
    assert nn.Module.__call__ is plain


def test_a_later_stage_reached_first_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(JobRefused, match="forward reaches 1 before 2: name the stages' first layers in the order"):
        record(model, lambda m, b: m(b[0]), (torch.ones(3, 2),), ["2", "1"], [])


def test_the_layer_that_begins_a_stage_may_be_called_again_in_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    forward: Forward = lambda m, b: m[0](m[1](m[0](b[0])))  # noqa: E731
    recording = record(model, forward, (torch.ones(3, 2),), ["0"], [])
    assert [call.stage for call in recording.calls] == [1, 1, 1]


def test_shapes_types_and_plain_values_are_the_signature() -> None:
    x = torch.zeros(3, 2)
    assert signature((x, 1)) == signature((torch.ones(3, 2), 1))
    assert len({signature((x, 1)), signature((x, 2)), signature((x.double(), 1)), signature((x.t(), 1))}) == 4


def test_what_is_kept_for_backward_is_counted() -> None:
    model = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 1))
    recording = record(model, lambda m, b: m(b[0]), (torch.randn(10, 8),), [], ["0"])
    assert [[kept.nbytes for kept in call.saved_storages] for call in recording.calls] == [[320], [4000], [4000]]
    assert recording.calls[2].saved_storages == recording.calls[1].saved_storages, "the same memory"


def test_a_nested_result_keeps_its_form() -> None:
    model = nn.Linear(2, 2)
    recording = record(model, lambda m, b: {"out": (m(b[0]), 7)}, (torch.ones(3, 2),), [], [])
    assert recording.result == {"out": (Value(1), 7)}


def positive(batch: Any) -> Tensor:
    return batch[0][batch[0] > 0]


@pytest.mark.parametrize(
    "divisor",
    [
        lambda b: len(positive(b)),
        lambda b: positive(b).shape[0],
        lambda b: positive(b).size(0),
        lambda b: positive(b).numel(),
        lambda b: sum(1 for _ in positive(b)),
    ],
    ids=["len", "shape", "size", "numel", "loop"],
)
def test_a_size_that_depends_on_the_data_is_checked_every_time(divisor: Callable[[Any], int]) -> None:
    model = nn.Linear(2, 1)
    recording = record(model, lambda m, b: m(b[0]).sum() / divisor(b), (torch.ones(3, 2),), [], [])
    run(recording, model, (torch.full((3, 2), 5.0),))
    with pytest.raises(
        JobRefused, match=r"called at test_recorder.py:\d+\) gives .*, and gave .* when forward was cut"
    ):
        run(recording, model, (torch.tensor([[1.0, -1.0], [2.0, 3.0], [-4.0, 5.0]]),))


def test_a_size_that_nobody_asked_for_may_change() -> None:
    model, x = nn.Linear(2, 1), torch.tensor([[1.0, -1.0], [2.0, 3.0], [-4.0, 5.0]])
    forward: Forward = lambda m, b: m(b[0]).sum() / positive(b).sum()  # noqa: E731
    recording = record(model, forward, (torch.ones(3, 2),), [], [])
    assert torch.equal(run(recording, model, (x,))[recording.result.index], forward(model, (x,)))


def in_bfloat16(model: Any, batch: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model[1](model[0](batch[0]))


def hooked(model: Any, batch: Any) -> Tensor:
    y = model[0](batch[0])
    y.register_hook(lambda grad: grad * 2)
    return model[1](y)


def checkpointed(model: Any, batch: Any) -> Tensor:
    return model[1](checkpoint(model[0], batch[0], use_reentrant=True))


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda m, b: m(b[0]) * random.random(), r"moves a random generator before mul \(at test_recorder.py:\d+"),
        (lambda m, b: m(b[0]) * np.random.rand(), "moves a random generator before mul"),
        (lambda m, b: (m(b[0]), torch.manual_seed(3))[0], "moves a random generator before the end"),
        (in_bfloat16, r"switches autocast before 0 \(at test_recorder.py:\d+\).*precision"),
        (lambda m, b: m(b[0]) * float(b[0].numpy().sum()), r"hands a tensor to NumPy at test_recorder.py:\d+"),
        (lambda m, b: m(b[0]) * float(np.asarray(b[0]).sum()), "hands a tensor to NumPy"),
        (lambda m, b: m(b[0]) * torch.from_numpy(b[1]), "from_numpy .* is given a ndarray"),
        (lambda m, b: m(b[0]) * torch.tensor(b[1]), "tensor .* is given a ndarray"),
        (hooked, r"hooks into the gradient of a tensor at test_recorder.py:\d+"),
        (checkpointed, r"calls 0 inside an autograd Function at test_recorder.py:\d+.*use_reentrant=True"),
        (
            lambda m, b: functional_call(m[1], dict(m[0].named_parameters()), (m[0](b[0]),)),
            "calls 1 at .* with another tensor in place of its parameter weight",
        ),
    ],
)
def test_what_a_cut_forward_would_not_do_again_is_refused(forward: Forward, said: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    batch = (torch.ones(3, 2, requires_grad=forward is checkpointed), np.ones(2))
    with pytest.raises(JobRefused, match=said):
        record(model, forward, batch, ["1"], [])


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


def test_an_autograd_function_keeps_its_own_backward() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.randn(3, 2)
    forward: Forward = lambda m, b: m[1](Reversed.apply(m[0](b[0])))  # noqa: E731
    forward(model, (x,)).square().sum().backward()
    expected = [param.grad for param in model.parameters()]
    model.zero_grad()
    recording = record(model, forward, (x,), ["1"], [])
    run(recording, model, (x,))[recording.result.index].square().sum().backward()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(model.parameters(), expected, strict=True))  # type: ignore[arg-type]
    assert "apply" in vars(torch.autograd.Function)
    assert [str(call) for call in recording.calls] == ["0", "apply", "1"]


class Remembers(nn.Module):
    """The last batch's hidden value takes part in this one's."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.inside, self.memory = inside, None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.memory is not None:
            h = h + self.memory
        self.memory = h.detach()
        return self.second(h)


class Tabled(nn.Module):
    """A table is made in the first forward and used in all: it depends on no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.table = torch.arange(2.0).cos()
        return self.second(self.first(x) * self.table)


@pytest.mark.parametrize("cuts", [["first"], []], ids=["around the layers", "in one call"])
def test_a_value_that_goes_from_batch_to_batch_is_refused_with_its_place(cuts: list[str]) -> None:
    model = nn.Sequential(Remembers(inside=True))
    inner = [f"0.{name}" for name in cuts]
    with pytest.raises(JobRefused, match=r"uses 0.memory, a tensor that an earlier batch left there"):
        record(model, lambda m, b: m(b[0]), (torch.ones(3, 2),), [], inner)
    assert model[0].memory is None


def test_a_table_that_is_made_once_is_a_constant() -> None:
    model = Tabled()
    for _ in range(2):
        recording = record(model, lambda m, b: m(b[0]), (torch.ones(3, 2),), ["second"], [])
        x = torch.randn(3, 2)
        assert torch.equal(run(recording, model, (x,))[recording.result.index], model(x))


def test_a_loss_that_uses_what_forward_left_behind_is_refused() -> None:
    class Leaves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = super().forward(x)
            return self.kept * 2

    model = nn.Sequential(Leaves(2, 2), nn.Linear(2, 2))
    settles = lambda made, batch, rows: made.sum() + model[0].kept.sum()  # noqa: E731
    with pytest.raises(JobRefused, match=r"the loss uses a tensor that 0 \(called at .*\) left behind.*forward="):
        record(model, lambda m, b: m(b[0]), (torch.ones(3, 2),), ["1"], [], settle=settles)


@pytest.mark.parametrize(
    "hide",
    [lambda x: lambda: x, lambda x: functools.partial(torch.mul, x, 1.0), lambda x: iter([x])],
    ids=["closure", "partial", "iterator"],
)
def test_a_tensor_that_the_batch_hides_is_no_constant(hide: Callable[[Tensor], Any]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def forward(m: Any, batch: Any) -> Tensor:
        hidden = batch[0]() if callable(batch[0]) else next(copy.copy(batch[0]))
        return m(batch[1]) + hidden

    with pytest.raises(JobRefused, match=r"at test_recorder.py:\d+ a tensor of shape \(3, 2\) that the batch holds"):
        record(model, forward, (hide(torch.ones(3, 2)), torch.ones(3, 2)), ["1"], [])


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, b: torch.func.vmap(m)(b[0]),
        lambda m, b: torch.func.vmap(torch.func.grad(lambda x: m(x).sum()))(b[0]),
        lambda m, b: torch.func.jvp(m, (b[0],), (b[0],))[1],
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, when it is loaded
def test_layers_inside_of_a_transform_are_refused(forward: Forward) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(JobRefused, match=r"inside of (torch.func|forward-mode AD) \(at test_recorder.py:\d+\)"):
        record(model, forward, (torch.ones(3, 2),), ["1"], [])


def test_threads_record_one_after_the_other_and_compute_beside_it() -> None:
    plain = nn.Module.__call__
    models, x = [Net() for _ in range(4)], torch.randn(5, 4)

    def recorded(model: nn.Module) -> list[str]:
        return [str(c) for c in record(model, lambda m, b: m(b[0]), (x,), [], ["second.1"]).calls]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(recorded, models * 5))
    assert all(calls == found[0] for calls in found)
    assert nn.Module.__call__ is plain


def test_a_record_does_not_import_torchs_compiler() -> None:
    """It takes a second, and leaves a folder behind."""
    code = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from samestep.parallel.cutting.recorder import record\n"
        "record(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), lambda m, b: m(b), torch.ones(1, 2), [], [])\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
