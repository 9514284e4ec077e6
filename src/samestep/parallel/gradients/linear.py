"""Write a Linear's weight gradient once, into its final place.

Autograd makes the gradient in fresh memory and somebody then copies or adds it. A matrix product can write with `out=`
instead: same kernel, same bits, a third of the memory traffic. What the kernel wrote is handed to autograd as the
gradient, so hooks, tied uses and repeated calls keep their meaning; the slot recognises its own memory and does not
copy. The product may also be deferred (`deferred.py`): it is the same one then.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from samestep.parallel.gradients.deferred import DEFERRED, can_defer
from samestep.system.onednn import LINEAR

PLAIN = (Tensor, nn.Parameter)
LARGE = 1 << 23  # multiplications from which oneDNN pays
Place = Callable[[], Tensor | None]


class _LinearInto(torch.autograd.Function):
    """y = x Wᵀ + b with dW = gᵀ x written to `place()`. x: (..., in), W: (out, in), g: (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, place: Place) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.leaf, ctx.bias, ctx.place = weight, bias, place  # a checkpoint hands back copies of what is saved
        rows = product(x.reshape(-1, weight.shape[1]), weight, bias)
        # `data` is no view to autograd, which forbids changing a view in place here: ReLU(inplace=True) follows often.
        return rows.view(*x.shape[:-1], weight.shape[0]).data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = grads[0].reshape(-1, weight.shape[0])
        # All this is differentiated once more (create_graph=True), or made for many gradients at once.
        again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        times = F.linear if again else product
        grad_x = times(rows, weight.t(), None).view(x.shape) if needs_x else None
        deferred, inputs = None if again else DEFERRED.get(), x.reshape(-1, weight.shape[1])
        if deferred is not None and can_defer(ctx.leaf) and (ctx.bias is None or can_defer(ctx.bias)):
            if needs_weight:
                deferred.defer(ctx.leaf, partial(_weight_gradient, rows, inputs.detach(), ctx.place))
            if needs_bias:
                deferred.defer(ctx.bias, partial(rows.sum, 0))
            return grad_x, None, None, None
        grad_weight = _weight_gradient(rows, inputs, _no_place if again else ctx.place) if needs_weight else None
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None, None


def _weight_gradient(rows: Tensor, inputs: Tensor, place: Place) -> Tensor:
    """dW = gᵀ x; rows: g, (rows, out), inputs: x, (rows, in)."""
    out = place()
    return torch.mm(rows.t(), inputs) if out is None else torch.mm(rows.t(), inputs, out=out)


def _no_place() -> None:
    """The place of a gradient that will itself be differentiated."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, x: (rows, in), W: (out, in), any strides.

    Large ones go through oneDNN, which is 10-50 % faster than the BLAS behind `F.linear` where rows
    are few, and costs 40 us more per call (benchmarks/linear). The choice depends on shapes alone.
    """
    large = x.shape[0] * weight.numel() >= LARGE and x.dtype == torch.float32 and x.device.type == "cpu"
    if large and LINEAR is not None:
        return LINEAR(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def write_weight_gradients_once(model: nn.Module, place_of: Callable[[nn.Parameter], Place | None]) -> None:
    """Let every plain `nn.Linear` of `model` write its weight gradient to its own place."""
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            weight = module._parameters.get("weight")
            place = place_of(weight) if weight is not None else None
            if place is not None:
                vars(module)["forward"] = _forward_of(module, place)


def _forward_of(module: nn.Linear, place: Place) -> Callable[[Tensor], Tensor]:
    own = module.weight

    def forward(x: Tensor) -> Tensor:
        weight = module.weight  # another one inside torch.func.functional_call
        return linear_into(x, weight, module.bias, place) if weight is own else F.linear(x, weight, module.bias)

    return forward


def linear_into(x: Tensor, weight: Tensor, bias: Tensor | None, place: Place) -> Tensor:
    """F.linear, whose backward writes the weight's gradient to `place()` where it is a plain backward of real tensors:
    not inside torch.func or forward mode."""
    plain = weight.dtype == x.dtype and weight.requires_grad and torch.is_grad_enabled() and not x.is_complex()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if not plain or transformed or type(x) not in PLAIN or torch.is_autocast_enabled(x.device.type) or x.numel() == 0:
        return F.linear(x, weight, bias)
    output: Tensor = _LinearInto.apply(x, weight, bias, place)  # type: ignore[no-untyped-call]
    return output
