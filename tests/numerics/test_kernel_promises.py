from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samestep.numerics import kernel_promises
from samestep.numerics.kernel_promises import PROMISES, broken_promises


@pytest.mark.parametrize("promise", PROMISES)
def test_this_torch_keeps_it(promise: str) -> None:
    torch.set_num_threads(1)
    assert PROMISES[promise]()


def test_all_is_tried_and_nothing_is_left_behind() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert broken_promises() == []
    assert torch.equal(torch.get_rng_state(), before)


def off_by_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel whose last element depends on how many elements there are."""

    def other(x: Tensor, *args: object) -> Tensor:
        result = function(x, *args).clone()
        result[..., -1] += 1e-7 * x.numel()
        return result

    return other


def test_a_kernel_with_another_tail_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "gelu", off_by_place(F.gelu))
    assert "a function of a slice at a multiple of 64 elements has the bits of the whole" in broken_promises()


def test_a_generator_that_goes_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "dropout", lambda x, p: x + torch.rand(1) * torch.default_generator.seed())
    assert broken_promises() == ["a random stream begins again with its seed"]


def test_an_update_that_looks_at_the_whole_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_promises, "_foreach", lambda param, grad, *_: param.add_(grad / grad.numel()))
    assert broken_promises() == ["an update of a piece has the bits that it has in the whole"]
