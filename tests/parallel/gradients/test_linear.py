"""A Linear whose weight gradient is written once: autograd's bits, in the place that is the weight's own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.parallel.gradients.linear import LARGE, Place, write_weight_gradients_once


def linear(inputs: int = 24, outputs: int = 17, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def gradients(model: nn.Module, x: Tensor, forward: Callable[..., Tensor] | None = None) -> dict[str, Tensor | None]:
    """Output and gradients of one forward and backward."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.requires_grad)
    output = (forward or (lambda m, x: m(x)))(model, x)
    output.square().sum().backward()
    found = {"output": output.detach(), "x": x.grad}
    found |= {name: param.grad for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = None
    return found


def check_same(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        other = b[name]
        assert (value is None) == (other is None), name
        if value is not None and other is not None:
            assert value.dtype == other.dtype
            assert torch.equal(value, other), name


def check_close(a: dict[str, Tensor | None], b: dict[str, Tensor | None], relative: float) -> None:
    """Up to `relative` of the largest element: sums of terms of both signs lose more than that of their own size."""
    assert a.keys() == b.keys()
    for name, value in b.items():
        assert value is not None, name
        torch.testing.assert_close(a[name], value, rtol=0, atol=relative * float(value.abs().max()))


class Places:
    """A place per weight, given once, as a slot does it; or none at all."""

    def __init__(self, *, give: bool = True) -> None:
        self.give = give
        self.made: dict[int, Tensor] = {}
        self.asked = 0

    def __call__(self, param: nn.Parameter) -> Place:
        def place() -> Tensor | None:
            self.asked += 1
            if not self.give or id(param) in self.made:
                return None
            self.made[id(param)] = torch.full_like(param, torch.nan, requires_grad=False)
            return self.made[id(param)].detach()

        return place


INPUTS = {
    "rows": rows(9, 24),
    "one row": rows(1, 24),
    "no dimension of rows": rows(24),
    "3-D": rows(3, 5, 24),
    "4-D": rows(2, 3, 4, 24),
    "column slice": rows(9, 48).detach()[:, ::2].requires_grad_(),
    "expanded": rows(1, 24).detach().expand(9, 24).requires_grad_(),
    "data, no gradient wanted": rows(9, 24).detach(),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("give", [True, False], ids=["a place", "no place"])
@pytest.mark.parametrize("x", INPUTS)
def test_the_bits_are_autograds(x: str, give: bool, bias: bool) -> None:
    expected = gradients(linear(bias=bias), INPUTS[x])
    model, places = linear(bias=bias), Places(give=give)
    write_weight_gradients_once(model, places)
    check_same(gradients(model, INPUTS[x]), expected)
    assert places.asked == 1


IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "ReLU": lambda m, x: F.relu(m(x), inplace=True),
    "add": lambda m, x: m(x).add_(1.0),
    "slice": lambda m, x: m(x).index_fill_(-1, torch.tensor([0]), 0.0),
    "a view of it": lambda m, x: m(x).view(-1).mul_(2.0),
}


@pytest.mark.parametrize("then", IN_PLACE)
@pytest.mark.parametrize("x", ["rows", "3-D", "no dimension of rows"])
def test_the_output_may_be_changed_in_place(x: str, then: str) -> None:
    """ReLU(inplace=True) behind a Linear once failed: autograd allows no change to a view that a Function made."""
    expected = gradients(linear(), INPUTS[x], IN_PLACE[then])
    model = linear()
    write_weight_gradients_once(model, Places())
    check_same(gradients(model, INPUTS[x], IN_PLACE[then]), expected)


def test_a_transposed_input_gives_the_same_up_to_rounding() -> None:
    """Autograd turns the product around then, to give the gradient the input's strides."""
    x = rows(24, 9).detach().t().requires_grad_()
    model = linear()
    write_weight_gradients_once(model, Places())
    check_close(gradients(model, x), gradients(linear(), x), 1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(784, 128), (128, 784), (1, 1), (64, 1), (1, 64), (257, 255)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_bits_are_autograds_in_any_size_and_dtype(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x = rows(32, inputs, dtype=dtype)
    model = linear(inputs, outputs, dtype=dtype)
    write_weight_gradients_once(model, Places())
    check_same(gradients(model, x), gradients(linear(inputs, outputs, dtype=dtype), x))


def test_the_gradient_lies_in_the_given_memory() -> None:
    model, places = linear(), Places()
    write_weight_gradients_once(model, places)
    found = gradients(model, INPUTS["rows"])
    place = places.made[id(model.weight)]
    assert found["weight"] is not None
    assert found["weight"].data_ptr() == place.data_ptr()
    assert not place.isnan().any()


def test_a_module_used_twice_gets_both_gradients() -> None:
    def twice(model: nn.Module, x: Tensor) -> Tensor:
        return model(model(x).tanh())

    model, places = linear(12, 12), Places()
    x = rows(7, 12)
    expected = gradients(linear(12, 12), x, twice)
    write_weight_gradients_once(model, places)
    check_same(gradients(model, x, twice), expected)
    assert places.asked == 2
    assert len(places.made) == 1


def test_a_weight_used_by_something_else_too_gets_both_gradients() -> None:
    def also(model: Any, x: Tensor) -> Tensor:
        return model(x) + F.linear(x, model.weight.square()) + model.weight.sum()

    model, x = linear(), INPUTS["rows"]
    expected = gradients(linear(), x, also)
    write_weight_gradients_once(model, Places())
    check_same(gradients(model, x, also), expected)


def test_a_model_of_several_and_hooks_keep_their_meaning() -> None:
    def build() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))

    model, seen = build(), []
    write_weight_gradients_once(model, Places())
    model[2].register_forward_hook(lambda *_: seen.append("forward"))
    model[2].register_full_backward_hook(lambda *_: seen.append("backward"))
    model[2].weight.register_hook(lambda grad: seen.append("gradient"))
    check_same(gradients(model, rows(4, 6)), gradients(build(), rows(4, 6)))
    assert sorted(seen) == ["backward", "forward", "gradient"]


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parameters_get_no_gradient(frozen: str) -> None:
    def build() -> nn.Linear:
        model = linear()
        model.weight.requires_grad_(frozen == "bias")
        model.bias.requires_grad_(frozen == "weight")
        return model

    model, places = build(), Places()
    write_weight_gradients_once(model, places)
    check_same(gradients(model, INPUTS["rows"]), gradients(build(), INPUTS["rows"]))
    assert bool(places.made) == (frozen == "bias")


def test_without_grad_nothing_is_recorded() -> None:
    model, places = linear(), Places()
    expected = F.linear(INPUTS["rows"], model.weight, model.bias)
    write_weight_gradients_once(model, places)
    with torch.no_grad():
        found = model(INPUTS["rows"])
    assert torch.equal(found, expected)
    assert not found.requires_grad
    with torch.inference_mode():
        assert torch.equal(model(INPUTS["rows"]), expected)
    assert places.asked == 0


def test_under_autocast_the_bits_are_autocasts() -> None:
    def cast(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    expected = gradients(linear(), INPUTS["rows"], cast)
    assert expected["output"] is not None
    assert expected["output"].dtype == torch.bfloat16
    model = linear()
    write_weight_gradients_once(model, Places())
    check_same(gradients(model, INPUTS["rows"], cast), expected)


def test_no_rows_at_all() -> None:
    model = linear()
    write_weight_gradients_once(model, Places())
    check_same(gradients(model, rows(0, 24)), gradients(linear(), rows(0, 24)))


class Loud(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


def test_subclasses_and_patched_modules_are_left_alone() -> None:
    patched = linear()
    patched.forward = lambda x: F.linear(x, patched.weight) * 3.0  # type: ignore[method-assign]
    loud = Loud(24, 17)
    before = loud(INPUTS["rows"]), patched(INPUTS["rows"])
    for model in (loud, patched):
        write_weight_gradients_once(model, Places())
    assert torch.equal(loud(INPUTS["rows"]), before[0])
    assert torch.equal(patched(INPUTS["rows"]), before[1])
    assert "forward" not in vars(loud)


def test_a_weight_without_a_place_of_its_own_is_left_alone() -> None:
    model = linear()
    write_weight_gradients_once(model, lambda param: None)
    assert "forward" not in vars(model)


def test_a_weight_that_a_parametrization_makes_keeps_it() -> None:
    model = nn.utils.parametrizations.weight_norm(linear())
    expected = gradients(nn.utils.parametrizations.weight_norm(linear()), INPUTS["rows"])
    write_weight_gradients_once(model, Places())
    check_same(gradients(model, INPUTS["rows"]), expected)


@pytest.mark.parametrize("size", [24, 600], ids=["small", "large"])
def test_a_gradient_penalty_differentiates_through_backward(size: int) -> None:
    """Neither `out=` nor oneDNN can be differentiated: with create_graph=True both stay away."""

    def penalised(model: nn.Module, x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return model(x).tanh() + grad.square().sum()

    expected = gradients(linear(size, size), rows(64, size), penalised)
    model = linear(size, size)
    write_weight_gradients_once(model, Places())
    found = gradients(model, rows(64, size), penalised)
    check_close(found, expected, 1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "outputs"), [((64, 512), 300), ((4, 16, 512), 300), ((8192, 33), 65)])
def test_large_products_are_autograds_up_to_rounding_and_repeat_their_bits(
    shape: tuple[int, ...], outputs: int, bias: bool
) -> None:
    """They go through another kernel; whoever computes them, it is that one."""
    x = rows(*shape)
    assert x.numel() * outputs >= LARGE

    def found() -> dict[str, Tensor | None]:
        model = linear(shape[-1], outputs, bias=bias)
        write_weight_gradients_once(model, Places())
        return gradients(model, x)

    first = found()
    check_same(found(), first)
    check_close(first, gradients(linear(shape[-1], outputs, bias=bias), x), 3e-6)


class Doubled(Tensor):
    """A class of tensors of somebody's own, which says itself what F.linear is."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [arg.as_subclass(Tensor) if isinstance(arg, Doubled) else arg for arg in args]
        found = func(*plain, **(kwargs or {}))
        return 2 * found if func is F.linear else found


def scalar(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).tanh().sum(-1)


def substituted(model: nn.Module, x: Tensor) -> Tensor:
    """Weights that are made from the parameters take their places, twice with other values."""
    params = dict(model.named_parameters())
    made = [{name: factor * value for name, value in params.items()} for factor in (2, 3)]
    return sum((torch.func.functional_call(model, one, (x,)) for one in made), torch.zeros(()))


def dual(model: nn.Module, x: Tensor) -> Tensor:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        return torch.as_tensor(forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent)


def many_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """Of one graph for several starts at once, and differentiable."""
    output = model(x)
    starts = torch.eye(output.shape[-1])[:3, None].expand(3, *output.shape)
    return torch.autograd.grad(output, x, starts, is_grads_batched=True, create_graph=True)[0]


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.grad(scalar(model)(x).sum(), x, create_graph=True)[0].square().sum() + model(x)


DERIVATIVES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "grad": lambda m, x: torch.func.vmap(torch.func.grad(scalar(m)))(x),
    "grad of grad": lambda m, x: torch.func.vmap(torch.func.grad(lambda r: torch.func.grad(scalar(m))(r).sum()))(x),
    "vmap": lambda m, x: torch.func.vmap(m)(x),
    "vmap of another dimension": lambda m, x: torch.func.vmap(m, in_dims=1)(x.t()[None].expand(1, -1, -1).mT),
    "jacrev": lambda m, x: torch.func.vmap(torch.func.jacrev(m))(x),
    "jacfwd": lambda m, x: torch.func.vmap(torch.func.jacfwd(m))(x),
    "hessian": lambda m, x: torch.func.vmap(torch.func.hessian(scalar(m)))(x),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (x.cos(),))[1],
    "vjp": lambda m, x: torch.func.vjp(m, x)[1](torch.ones(9, 5))[0],
    "functional_call": substituted,
    "dual": dual,
    "many gradients": many_gradients,
    "penalty": penalty,
    "jacobian, vectorized": lambda m, x: torch.autograd.functional.jacobian(m, x, create_graph=True, vectorize=True),
    "a class of tensors": lambda m, x: m(x.as_subclass(Doubled)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch, on its way to forward mode
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_are_torchs_own(derivative: str) -> None:
    x, forward = rows(9, 6), DERIVATIVES[derivative]
    torch.manual_seed(2)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh())  # every parameter counts
    ours = copy.deepcopy(plain)
    write_weight_gradients_once(ours, Places())
    check_close(gradients(ours, x, forward), gradients(plain, x, forward), 1e-5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_gradients_are_torchs_own(dtype: torch.dtype) -> None:
    plain, ours = linear(dtype=dtype), linear(dtype=dtype)
    write_weight_gradients_once(ours, Places())

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return torch.view_as_real(model(x))

    check_same(gradients(ours, rows(9, 24, dtype=dtype), forward), gradients(plain, rows(9, 24, dtype=dtype), forward))
