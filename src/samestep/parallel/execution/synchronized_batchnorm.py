"""BatchNorm over the whole batch, whatever its cut into shards (`sync_batchnorm=True`), on CPU too.

Forward: shards exchange (count, mean, sum of squared deviations) per channel and combine them (Chan,
Golub, LeVeque 1979). With n elements per channel, x̂ = (x - μ) / sqrt(σ² + ε), g = dL/dy:

    dL/dx = γ / sqrt(σ² + ε) · (g - Σg / n - x̂ · Σ(g x̂) / n)

where both sums run over the whole batch, so backward exchanges them once more (Ioffe, Szegedy 2015).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from samestep.errors import JobRefused
from samestep.numerics.reduction_tree import tree_sum
from samestep.parallel.execution.lockstep import meet


def synchronise_batchnorm(model: nn.Module) -> None:
    """Let every BatchNorm of `model` take its training statistics over all shards of the step."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            vars(module)["forward"] = _forward_of(name, module)


def _forward_of(name: str, module: _BatchNorm) -> Any:
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        if not module.training:
            return plain(x)
        module._check_input_dim(x)  # type: ignore[no-untyped-call]
        mean, var, count = _batch_moments(name, x)
        if count < 2:
            raise JobRefused(f"BatchNorm {name} got one value per channel over the whole batch: use larger batches")
        if module.track_running_stats:
            _move_statistics(module, mean, var * (count / (count - 1)))
        std = torch.rsqrt(var + module.eps)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # as torch's kernel computes
        output: Tensor = _Normalise.apply(wide, mean, std, count, name)  # type: ignore[no-untyped-call]
        if module.affine:
            shape = _channel_shape(x)
            output = output * module.weight.view(shape) + module.bias.view(shape)
        return output.to(x.dtype)

    return forward


def _batch_moments(name: str, x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance per channel over the batch (float64), and values per channel."""
    dims = [d for d in range(x.dim()) if d != 1]
    var, mean = torch.var_mean(x.detach().double(), dims, correction=0)
    count = x.numel() // x.shape[1]
    mine = torch.stack([torch.full_like(mean, count), mean, var * count])
    shards = meet(f"{name} forward", mine)
    total = float(tree_sum([shard[0, :1] for shard in shards]))
    mean = tree_sum([shard[0] * shard[1] for shard in shards]) / total
    squares = tree_sum([shard[2] + shard[0] * (shard[1] - mean) ** 2 for shard in shards])
    return mean, squares / total, total


def _move_statistics(module: _BatchNorm, mean: Tensor, unbiased_var: Tensor) -> None:
    assert module.num_batches_tracked is not None
    assert module.running_mean is not None
    assert module.running_var is not None
    module.num_batches_tracked += 1
    share = 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), share)
    module.running_var.lerp_(unbiased_var.to(module.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """x̂ = (x - mean) * std with mean and std (its reciprocal) of the whole batch. x: (rows, channels, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, std: Tensor, count: float, name: str) -> Tensor:
        shape = _channel_shape(x)
        normal = (x - mean.to(x.dtype).view(shape)) * std.to(x.dtype).view(shape)
        ctx.save_for_backward(normal, std)
        ctx.count, ctx.name = count, name
        return normal

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        normal, std = ctx.saved_tensors
        (grad,) = grads
        dims = [d for d in range(grad.dim()) if d != 1]
        mine = torch.stack([grad.double().sum(dims), (grad * normal).double().sum(dims)])
        sums = tree_sum(meet(f"{ctx.name} backward", mine)) / ctx.count
        shape = _channel_shape(grad)
        centred = grad - sums[0].to(grad.dtype).view(shape) - normal * sums[1].to(grad.dtype).view(shape)
        return centred * std.to(grad.dtype).view(shape), None, None, None, None


def _channel_shape(x: Tensor) -> list[int]:
    return [1, -1] + [1] * (x.dim() - 2)
