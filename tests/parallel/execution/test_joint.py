"""A sliced layer computed by any workers for any rows: the bits of one worker; up to rounding those of the whole."""

import threading
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from samestep.errors import JobRefused
from samestep.parallel.cutting.attention import Attention
from samestep.parallel.cutting.cut import Region, cut
from samestep.parallel.cutting.recorder import record
from samestep.parallel.cutting.sliced_attention import slice_attention
from samestep.parallel.cutting.slices import SlicedRegion, outputs_of, slice_layer, slice_sizes, why_not_sliced
from samestep.parallel.execution.joint import Joint, meeting_of
from samestep.transport.threads import ThreadFabric

SHARDS = 4
ROWS = (3, 2, 3, 1)
KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 7), (5, 6)),
    "conv1d": (nn.Conv1d(3, 7, 3, padding=1), (3, 8)),
    "conv2d": (nn.Conv2d(2, 7, 3, stride=2), (2, 7, 7)),
    "embedding": (nn.Embedding(9, 7, padding_idx=0), (4,)),
    "bag": (nn.EmbeddingBag(9, 7), (4,)),
    "heads": (nn.MultiheadAttention(10, 5, bias=False), (3, 10)),
    "causal heads, rows first, with dropout": (nn.MultiheadAttention(10, 5, 0.3, batch_first=True), (3, 10)),
    "pair": (nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 5, bias=False)), (5, 6)),
    "pair with dropout": (nn.Sequential(nn.Linear(6, 7), nn.Dropout(0.4), nn.Linear(7, 5, bias=False)), (6,)),
}
"""A column layer each, or one with a row layer after it."""


def inputs_of(kind: str) -> list[Tensor]:
    shape = KINDS[kind][1]
    generator = torch.Generator().manual_seed(5)
    if kind in ("embedding", "bag"):
        return [torch.randint(0, 9, (rows, *shape), generator=generator) for rows in ROWS]
    found = [torch.randn(rows, *shape, generator=generator) for rows in ROWS]
    return [x.transpose(0, 1) for x in found] if kind == "heads" else found


def region_of(kind: str, own: range, num_slices: int) -> SlicedRegion:
    module = KINDS[kind][0]
    if isinstance(module, nn.Sequential):
        region, sizes = pair_of(kind, num_slices), slice_sizes(module[0], num_slices)
        column, row = (slice_layer(n, module[int(n)], is_row=n == "2", sizes=sizes) for n in region.layers)
        return SlicedRegion(region, column, row, own, module, lambda param: lambda: None)
    if isinstance(module, nn.MultiheadAttention):
        heads = slice_attention("layer", module, num_slices)
        region = Region("layer", (), None, 0, 1, Attention(0, None, "causal" in kind))
        return SlicedRegion(region, heads, None, own, module, lambda param: lambda: None)
    layer = slice_layer("layer", module, is_row=False, sizes=slice_sizes(module, num_slices))
    return SlicedRegion(Region("layer", (), None, 0, 1), layer, None, own, module, lambda param: lambda: None)


@cache
def pair_of(kind: str, num_slices: int) -> Region:
    recording = record(KINDS[kind][0], lambda m, b: m(b[0]), (inputs_of(kind)[0],), [], ["0", "2"])
    region = cut(recording, KINDS[kind][0], 1, {"0": (num_slices,), "2": (num_slices,)}).segments[1].region
    assert region is not None
    return region


def computed(kind: str, assign: tuple[int, ...], counts: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor], Any]:
    """Every shard's output and input gradient, and the slices' weight gradients in order."""
    fabric, inputs = ThreadFabric(len(assign)), inputs_of(kind)
    if "pair" in kind:
        pair_of(kind, sum(counts))  # recorded before there are threads
    starts = [sum(assign[:r]) for r in range(len(assign))]
    held = {r: range(a, a + n) for r, a, n in zip(range(len(assign)), starts, assign, strict=True)}
    outputs: dict[int, Tensor] = {}
    grads: dict[int, Tensor] = {}
    weights: dict[tuple[bool, int], Tensor] = {}
    failures: list[BaseException] = []

    def work(rank: int) -> None:
        transport = fabric.endpoint(rank)
        try:
            meeting = meeting_of(rank, range(len(assign)), counts, held, range(SHARDS))
            region = region_of(kind, meeting.own_slices, sum(counts))
            joint = Joint(region, meeting, transport)
            made = joint.forward([inputs[s] for s in held[rank]], ("test",), needs_grad=inputs[0].is_floating_point())
            outputs.update(zip(held[rank], made, strict=True))
            found = joint.backward([torch.cos(y) for y in made])
            grads.update(zip(held[rank], found, strict=False))
            layers = [region.column] if region.row is None else [region.column, region.row]
            weights.update({(of.is_row, k): of.weights[k].grad for of in layers for k in meeting.own_slices})
        except BaseException as failure:  # noqa: BLE001 - raised again by the test
            failures.append(failure)
        finally:
            transport.close()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(assign))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert set(outputs) == set(range(SHARDS))
    return [outputs[s] for s in range(SHARDS)], [grads[s] for s in sorted(grads)], [weights[k] for k in sorted(weights)]


def splits(total: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, total), min_size=0, max_size=3).map(
        lambda cuts: tuple(b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), total], strict=True))
    )


def assert_as_alone(kind: str, assign: tuple[int, ...], counts: tuple[int, ...]) -> None:
    for one, other in zip(computed(kind, assign, counts), computed(kind, (SHARDS,), (sum(counts),)), strict=True):
        assert len(one) == len(other)
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (2, 1, 1, 0), (0, 4, 1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "pair", "pair with dropout"])
def test_summands_of_many_holders_are_added_in_the_trees_order(kind: str, counts: tuple[int, ...]) -> None:
    assert_as_alone(kind, (1, 1, 2, 0), counts)


@given(data=st.data(), kind=st.sampled_from(list(KINDS)), num_slices=st.integers(1, 5))
def test_whoever_has_the_rows_and_the_slices(data: st.DataObject, kind: str, num_slices: int) -> None:
    assign = data.draw(splits(SHARDS))
    counts = data.draw(splits(num_slices).filter(lambda c: len(c) <= len(assign)))
    counts = (*counts, *(0,) * (len(assign) - len(counts)))
    assert_as_alone(kind, assign, counts)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "pair" not in kind and "heads" not in kind])
def test_together_they_are_the_whole_layer(kind: str) -> None:
    module, inputs = KINDS[kind][0], inputs_of(kind)
    outputs, grads, weights = computed(kind, (SHARDS,), (3,))
    whole = torch.cat(inputs).requires_grad_() if inputs[0].is_floating_point() else torch.cat(inputs)
    expected = module(whole)
    module.zero_grad()
    expected.backward(torch.cos(expected.detach()))
    assert torch.allclose(torch.cat(outputs), expected, atol=1e-6)
    if grads:
        assert whole.grad is not None
        assert torch.allclose(torch.cat(grads), whole.grad, atol=1e-6)
    assert module.weight.grad is not None
    dim = 1 if kind in ("embedding", "bag") else 0
    assert torch.allclose(torch.cat(weights, dim), module.weight.grad, atol=1e-5)


def test_a_pair_is_the_two_layers_and_what_is_between_them() -> None:
    module, inputs = KINDS["pair"][0], inputs_of("pair")
    outputs, grads, weights = computed("pair", (SHARDS,), (3,))
    whole = torch.cat(inputs).requires_grad_()
    expected = module(whole)
    module.zero_grad()
    expected.backward(torch.cos(expected.detach()))
    assert whole.grad is not None
    assert torch.allclose(torch.cat(outputs), expected, atol=1e-6)
    assert torch.allclose(torch.cat(grads), whole.grad, atol=1e-6)
    assert torch.allclose(torch.cat(weights[:3], 0), module[0].weight.grad, atol=1e-5)
    assert torch.allclose(torch.cat(weights[3:], 1), module[2].weight.grad, atol=1e-5)


def test_every_slice_draws_from_a_stream_of_its_own() -> None:
    """Slices of equal weights, and dropout between: equal masks would give equal gradients."""
    module = KINDS["pair with dropout"][0]
    region = region_of("pair with dropout", range(7), 7)
    for layer in (region.column, region.row):
        for leaf in layer.weights if layer else ():
            torch.nn.init.ones_(leaf)
    drawn = [region.forward(torch.ones(40, 6), stream, needs_grad=False)[1] for stream in [("a",), ("a",), ("b",)]]
    assert module.training
    assert all(torch.equal(one, again) for one, again in zip(drawn[0], drawn[1], strict=True))
    assert len({tuple(y[:, 0].eq(0).tolist()) for ys in (drawn[0], drawn[2]) for y in ys}) == 14


def test_uneven_slices_differ_by_one() -> None:
    assert slice_sizes(nn.Linear(3, 7), 2) == (4, 3)
    assert outputs_of(nn.Embedding(5, 9)) == 9


def hooked() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda module, args, output: output * 2)
    return module


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (weight_norm(nn.Linear(2, 2)), "parametrized"),
        (hooked(), "it has hooks"),
        (spectral_norm(nn.Linear(2, 2)), "it has hooks"),
        (nn.Conv2d(4, 4, 3, groups=2), "2 groups"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (nn.Linear(2, 2).requires_grad_(False), "frozen"),
        (nn.LSTM(4, 2), "a LSTM is none of"),
        (nn.LayerNorm(3), "a LayerNorm is none of"),
    ],
)
def test_what_cannot_be_sliced_says_why(module: nn.Module, said: str) -> None:
    reason = why_not_sliced(module, shared=False)
    assert reason is not None
    assert said in reason
    assert why_not_sliced(nn.Linear(2, 2), shared=False) is None
    assert why_not_sliced(nn.Linear(2, 2), shared=True) == "its weight is tied to another layer's"


def test_shards_of_different_shapes_are_refused() -> None:
    """Rows that are not the first dimension: a short batch makes the others differ."""
    module = nn.Conv1d(3, 4, 3, padding=1)
    layer = slice_layer("layer", module, is_row=False, sizes=(2, 2))
    sliced = SlicedRegion(Region("layer", (), None, 0, 1), layer, None, range(2), module, lambda param: lambda: None)
    joint = Joint(sliced, meeting_of(0, (0,), (2,), {0: range(2)}, range(2)), ThreadFabric(1).endpoint(0))
    with pytest.raises(JobRefused, match=r"different shapes to layer, \(rows, 3, 7\) and \(rows, 3, 8\)"):
        joint.forward([torch.randn(2, 3, 8), torch.randn(2, 3, 7)], ("test",), needs_grad=True)
