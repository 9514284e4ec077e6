"""Attention cut by heads is the layer itself, up to rounding, and says when it cannot be cut."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.parallel.cutting.cut import Region, cut
from samestep.parallel.cutting.recorder import record
from samestep.parallel.cutting.sliced_attention import slice_attention
from samestep.parallel.cutting.slices import SlicedRegion, why_not_sliced
from samestep.parallel.execution.joint import Joint, meeting_of
from samestep.transport.threads import ThreadFabric


class Model(nn.Module):
    """Self-attention of 5 heads, 4 features each."""

    def __init__(self, options: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(20, 5, **settings)
        self.register_buffer("forbidden", torch.ones(3, 3, dtype=torch.bool).triu(1))
        self.register_buffer("bias", torch.randn(3, 3))
        self.options = options or {}

    def forward(self, x: Tensor) -> Tensor:
        options = {k: getattr(self, v) if isinstance(v, str) else v for k, v in self.options.items()}
        out: Tensor = self.attention(x, x, x, **options)[0]
        return out


CASES: dict[str, dict[str, Any]] = {
    "positions first": {},
    "rows first": {"batch_first": True},
    "no bias": {"batch_first": True, "bias": False},
    "a mask of bools": {"options": {"attn_mask": "forbidden", "need_weights": False}},
    "a mask to add": {"options": {"attn_mask": "bias"}},
    "causal": {"options": {"attn_mask": "forbidden", "is_causal": True, "need_weights": False}, "batch_first": True},
}


def region_of(model: Model, x: Tensor) -> Region:
    recording = record(model, lambda m, b: m(b[0]).sum(), (x,), [], ["attention"])
    found = cut(recording, model, 1, {"attention": (3,)}).segments[1].region
    assert found is not None
    return found


@pytest.mark.parametrize("case", CASES)
def test_slices_of_heads_are_the_whole_layer(case: str) -> None:
    torch.manual_seed(0)
    model, x = Model(**CASES[case]), torch.randn(3, 3, 20, requires_grad=True)
    expected = model(x)
    expected.backward(torch.cos(expected.detach()))
    layer = slice_attention("attention", model.attention, 3)
    sliced = SlicedRegion(region_of(model, x.detach()), layer, None, range(3), model, lambda param: lambda: None)
    joint = Joint(sliced, meeting_of(0, (0,), (3,), {0: range(1)}, range(1)), ThreadFabric(1).endpoint(0))
    [z] = joint.forward([x.detach()], ("test",), needs_grad=True)
    bias = model.attention.out_proj.bias
    assert torch.allclose(z if bias is None else z + bias, expected, atol=1e-6)
    [dx] = joint.backward([torch.cos(expected.detach())])
    assert x.grad is not None
    assert torch.allclose(dx, x.grad, atol=1e-5)
    assert [len(leaves) for _, _, leaves in layer.wholes()] == [9, 9, 3] if bias is not None else [9, 3]
    for whole, dim, leaves in layer.wholes():
        assert whole.grad is not None
        assert torch.allclose(
            torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None], dim), whole.grad, atol=1e-5
        )
        assert torch.equal(torch.cat([leaf.detach() for leaf in leaves], dim), whole)


def test_sliced_attention_are_dealt_out_as_evenly_as_can_be() -> None:
    layer = slice_attention("a", nn.MultiheadAttention(20, 5), 3)
    assert [leaf.shape[0] for leaf in layer.weights] == [8, 8, 4]
    assert list(layer.parts)[:4] == ["a.in_proj_weight[0:8]", "a.in_proj_weight[8:16]", "a.in_proj_weight[16:20]",
                                     "a.in_proj_weight[20:28]"]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.MultiheadAttention(4, 2, kdim=3), "another width"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(4, 2, add_zero_attn=True), "add_zero_attn"),
    ],
)
def test_layers_that_stay_whole(module: nn.Module, said: str) -> None:
    assert said in str(why_not_sliced(module, shared=False))


def crossed(m: Model, x: Tensor) -> Any:
    return m.attention(x, x + 1, x)[0]


def padded(m: Model, x: Tensor) -> Any:
    return m.attention(x, x, x, key_padding_mask=torch.zeros(3, 3, dtype=torch.bool))[0]


def masked(m: Model, x: Tensor) -> Any:
    return m.attention(x, x, x, attn_mask=torch.zeros(3, 3))[0]


def weights(m: Model, x: Tensor) -> Any:
    out, found = m.attention(x, x, x)
    return out.sum() + found.sum()


def without_rows(m: Model, x: Tensor) -> Any:
    first = x[0]
    return m.attention(first, first, first)[0]


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (crossed, "come from different tensors"),
        (padded, "key_padding_mask"),
        (masked, "its attn_mask is computed in forward"),
        (weights, "its attention weights are used"),
        (without_rows, "its input has 2 dimensions"),
    ],
)
def test_calls_that_cannot_be_cut_by_heads_say_why(forward: Any, said: str) -> None:
    model = Model()
    recording = record(model, lambda m, b: forward(m, b[0]).sum(), (torch.randn(3, 3, 20),), [], ["attention"])
    with pytest.raises(
        JobRefused,
        match=rf"layer attention cannot be cut by heads \(called at test_sliced_attention.py:\d+\): .*{said}",
    ):
        cut(recording, model, 1, {"attention": (3,)})
