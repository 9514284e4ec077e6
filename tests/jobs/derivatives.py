"""Derivatives inside forward: an energy's forces, a Hessian, gradients per sample, forward mode."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import samestep

Batch = tuple[Tensor, Tensor]


def energy(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.as_tensor(model(x)).squeeze(-1)


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean()


def hessian(model: nn.Module, batch: Batch) -> Tensor:
    second = torch.func.hessian(energy(model))
    return distance(torch.func.vmap(lambda x: second(x).diagonal().sum())(batch[0]), batch[1])


def per_sample(model: nn.Module, batch: Batch) -> Tensor:
    params = dict(model.named_parameters())

    def of_sample(x: Tensor) -> Tensor:
        return torch.as_tensor(torch.func.functional_call(model, params, (x,))).squeeze(-1)

    return distance(torch.func.vmap(torch.func.grad(of_sample))(batch[0]).sum(1), batch[1])


def jvp(model: nn.Module, batch: Batch) -> Tensor:
    return distance(torch.func.jvp(model, (batch[0],), (torch.ones_like(batch[0]),))[1].squeeze(1), batch[1])


def dual(model: nn.Module, batch: Batch) -> Tensor:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        out = model(forward_ad.make_dual(batch[0], torch.ones_like(batch[0])))
        return distance(torch.as_tensor(forward_ad.unpack_dual(out).tangent).squeeze(1), batch[1])


def force(model: nn.Module, batch: Batch) -> Tensor:
    x = batch[0].requires_grad_()
    return distance(torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].sum(1), batch[1])


CASES = {function.__name__: function for function in (hessian, per_sample, jvp, dual, force)}


def job(case: str = "hessian") -> samestep.Job:
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)),
        forward=CASES[case],
        data=(torch.randn(32, 2), torch.randn(32)),
        optimizer=lambda params: torch.optim.Adam(params, 1e-3),
        batch_size=16,
        shards=4,
        steps=3,
    )
