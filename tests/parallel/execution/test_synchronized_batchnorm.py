"""Synchronised BatchNorm over shards against nn.BatchNorm on the whole batch."""

import copy
from typing import Any

import pytest
import torch
from test_lockstep import run_over
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.numerics.numerics import shard_rows
from samestep.parallel.execution.buffers import Buffers, buffer_starts
from samestep.parallel.execution.synchronized_batchnorm import synchronise_batchnorm

CHANNELS = 5
SHAPES = {"rows": (13, CHANNELS), "1-D": (13, CHANNELS, 4), "2-D": (13, CHANNELS, 3, 2), "3-D": (7, CHANNELS, 2, 2, 2)}
KINDS: dict[str, type[nn.Module]] = {
    "rows": nn.BatchNorm1d,
    "1-D": nn.BatchNorm1d,
    "2-D": nn.BatchNorm2d,
    "3-D": nn.BatchNorm3d,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "not affine": {"affine": False},
    "cumulative": {"momentum": None},
    "no statistics": {"track_running_stats": False},
    "eps": {"eps": 0.1, "momentum": 0.7},
}


def batch(shape: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs far from zero, as differences of large squares would not survive, and weights for the loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPES[shape], dtype=torch.float64, generator=generator)
    return (3 * x + 50).to(dtype), torch.randn(SHAPES[shape], dtype=torch.float64, generator=generator).to(dtype)


def norm(shape: str, options: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    module = KINDS[shape](CHANNELS, dtype=dtype, **options)
    for i, param in enumerate(module.parameters()):
        param.data = torch.linspace(0.5 + i, 2.0 + i, CHANNELS, dtype=dtype)
    return module.train()


def steps(module: nn.Module, inputs: list[Tensor], weights: list[Tensor], count: int) -> dict[str, Tensor]:
    """A plain module: outputs, gradients and statistics after `count` steps over the whole batch."""
    x, w = torch.cat(inputs).requires_grad_(), torch.cat(weights)
    for _ in range(count):
        output = module(x)
    (output.tanh() * w).sum().backward()
    assert x.grad is not None
    found = {"output": output.detach(), "x": x.grad}
    found |= {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found | dict(module.named_buffers())


def synchronised(
    module: nn.Module, inputs: list[Tensor], weights: list[Tensor], count: int, assign: tuple[int, ...]
) -> dict[str, Tensor]:
    """The same over shards, on workers that each have a copy of the module."""
    num_shards = len(inputs)
    models = [copy.deepcopy(module) for _ in assign]
    size = buffer_starts(list(module.buffers()))[-1]
    boards = [torch.zeros(size, dtype=torch.uint8) for _ in range(num_shards)]
    buffers = [Buffers(model, boards) for model in models]
    for model in models:
        synchronise_batchnorm(model)
    holder = [rank for rank, share in enumerate(assign) for _ in range(share)]
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    changed: dict[int, bytes] = {}

    def shard(number: int) -> None:
        model, x = models[holder[number]], inputs[number].clone().requires_grad_()
        buffers[holder[number]].begin_shard()
        output = model(x)
        (output.tanh() * weights[number]).sum().backward()
        changed[number] = buffers[holder[number]].end_shard(number)
        found[number] = (output.detach(), x.grad)

    for _ in range(count):
        for model in models:
            model.zero_grad()
        for outcome in run_over(assign, shard, lambda rank: buffers[rank]):
            if outcome is not None:
                raise outcome
        for each in buffers:
            each.merge([changed[number] for number in range(num_shards)], [len(x) for x in inputs])
    result = {"output": torch.cat([found[number][0] for number in range(num_shards)])}
    result["x"] = torch.cat([grad for number in range(num_shards) if (grad := found[number][1]) is not None])
    for name, _ in module.named_parameters():
        grads = [dict(model.named_parameters())[name].grad for model in models]
        result[name] = sum(grad for grad in grads if grad is not None)  # type: ignore[assignment]
    for model in models[1:]:
        for name, value in model.named_buffers():
            assert torch.equal(value, dict(models[0].named_buffers())[name]), "workers disagree"
    return result | dict(models[0].named_buffers())


def cut(x: Tensor, num_shards: int) -> list[Tensor]:
    return [x[part.start : part.stop] for part in shard_rows(len(x), num_shards)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("assign", [(1,), (3, 1)], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_over_shards_it_is_batchnorm_of_the_whole_batch(
    shape: str, options: str, assign: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, w = batch(shape, dtype)
    inputs, weights = cut(x, sum(assign)), cut(w, sum(assign))
    expected = steps(norm(shape, OPTIONS[options], dtype), inputs, weights, 3)
    found = synchronised(norm(shape, OPTIONS[options], dtype), inputs, weights, 3, assign)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        tolerance = 1e-11 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_inputs_are_normalised_in_float32(weights: torch.dtype) -> None:
    """As under autocast, and as torch does it: 50 - 50.3 has one digit in bfloat16."""
    x, w = batch("2-D", torch.bfloat16)
    expected = steps(norm("2-D", {}, weights), [x], [w], 1)
    found = synchronised(norm("2-D", {}, weights), cut(x, 2), cut(w, 2), 1, (1, 1))
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
    exact = steps(norm("2-D", {}, torch.float64), [x.double()], [w.double()], 1)
    for name in ("output", "x", "running_mean", "running_var"):
        torchs, ours = ((part[name] - exact[name]).abs().max() for part in (expected, found))
        assert ours <= 1.5 * torchs, name


@pytest.mark.parametrize("assign", [(2, 2), (3, 1), (1, 1, 2), (1, 0, 3)], ids=str)
def test_the_bits_do_not_depend_on_the_workers(assign: tuple[int, ...]) -> None:
    x, w = batch("2-D", torch.float32)
    inputs, weights = cut(x, 4), cut(w, 4)
    alone = synchronised(norm("2-D", {}, torch.float32), inputs, weights, 2, (4,))
    found = synchronised(norm("2-D", {}, torch.float32), inputs, weights, 2, assign)
    for name in ("output", "x", "running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(found[name], alone[name]), name


def test_statistics_per_shard_would_be_another_result() -> None:
    """The comparison above can fail: without synchronisation it does."""
    x, w = batch("rows", torch.float64)
    inputs, weights = cut(x, 2), cut(w, 2)
    expected = steps(norm("rows", {}, torch.float64), inputs, weights, 1)
    apart = torch.cat([norm("rows", {}, torch.float64)(part).detach() for part in inputs])
    assert float((apart - expected["output"]).abs().max()) > 0.1


def test_strides_are_kept() -> None:
    x = torch.randn(8, CHANNELS, 3, 2).to(memory_format=torch.channels_last)
    module = norm("2-D", {}, torch.float32)
    expected = module(x)
    weights = [torch.ones_like(part) for part in cut(x, 2)]
    seen = []
    module.register_forward_hook(lambda *args: seen.append(args[2].stride()))
    synchronised(module, cut(x, 2), weights, 1, (2,))
    assert seen == [expected.stride()] * 2


def test_evaluation_uses_the_running_statistics_and_meets_nobody() -> None:
    module = norm("rows", {}, torch.float32)
    module(torch.randn(9, CHANNELS))
    module.eval()
    x = torch.randn(4, CHANNELS)
    expected = module(x)
    synchronise_batchnorm(module)
    assert torch.equal(module(x), expected)


def test_one_value_per_channel_over_the_whole_batch_is_refused() -> None:
    with pytest.raises(JobRefused, match="one value per channel over the whole batch"):
        synchronised(norm("rows", {}, torch.float32), [torch.ones(1, CHANNELS)], [torch.ones(1, CHANNELS)], 1, (1,))


def test_a_shard_of_one_row_is_fine_when_the_batch_has_more() -> None:
    x, w = batch("rows", torch.float64)
    parts = [x[:1], x[1:5]], [w[:1], w[1:5]]
    expected = steps(norm("rows", {}, torch.float64), *parts, 1)
    found = synchronised(norm("rows", {}, torch.float64), *parts, 1, (1, 1))
    torch.testing.assert_close(found["output"], expected["output"])


def test_a_wrong_number_of_dimensions_is_said_as_torch_says_it() -> None:
    module = norm("2-D", {}, torch.float32)
    synchronise_batchnorm(module)
    with pytest.raises(ValueError, match="expected 4D input"):
        module(torch.zeros(3, CHANNELS))


def test_all_batchnorms_of_a_model_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Sequential(nn.BatchNorm2d(2), nn.LayerNorm(4)))
    synchronise_batchnorm(model)
    patched = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert patched == ["1", "2.0"]
