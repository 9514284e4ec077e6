"""Slices of a layer: parameters of their own, computed jointly for the rows of several shards.

A layer is cut along its outputs into K slices. K is part of the numbers; who computes a slice is not:

    column   x (rows, in)           W = [W_0; W_1; ...]       y = [x W_0ᵀ + b_0 | x W_1ᵀ + b_1 | ...]
    row      y_k (rows, cut of in)  W = [W_0 | W_1 | ...]     z = Σ_k y_k W_kᵀ + b, in the tree's order

A slice's gradient takes all rows of the set in one product and needs no reduction; the input's gradient is the sum over
slices, in the tree's order. Convolutions and embeddings are cut by output channels and by embedding columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Region
from samestep.parallel.cutting.recording import perform
from samestep.parallel.gradients.linear import Place, linear_into
from samestep.parallel.gradients.seeds import Seed, backward_from
from samestep.plan.plan import equal_shares

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def why_not_sliced(module: nn.Module, shared: bool) -> str | None:
    """Reason why a layer cannot be sliced; None if it can. `shared`: its weight has a second name."""
    kind = type(module)
    if any(map(parametrize.is_parametrized, module.modules())):
        return "it is parametrized: its weight is computed again in every forward"
    if kind not in (nn.Linear, *CONVOLUTIONS, *EMBEDDINGS, nn.MultiheadAttention):
        return f"a {kind.__name__} is none of Linear, Conv1d, Conv2d, Embedding, EmbeddingBag, MultiheadAttention"
    if "forward" in vars(module) and kind is not nn.Linear:
        return "its forward was replaced"
    if module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks:
        return "it has hooks"
    if kind is not nn.MultiheadAttention and {name for name, _ in module.named_parameters()} - {"weight", "bias"}:
        return "it has parameters beside its weight and bias"
    if shared:
        return "its weight is tied to another layer's"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups != 1:
        return f"it has {module.groups} groups"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (
        module.max_norm is not None or module.scale_grad_by_freq
    ):
        return "max_norm and scale_grad_by_freq need the whole row"
    if not all(param.requires_grad for param in module.parameters()):
        return "it is frozen"
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is None:
            return "its keys or values have another width than its queries (kdim, vdim)"
        if module.bias_k is not None or module.add_zero_attn:
            return "add_bias_kv and add_zero_attn add a position that no row brings"
    return None


def outputs_of(module: nn.Module) -> int:
    """Number of outputs (or heads) of a layer, which is the most slices that it can have."""
    for name in ("out_features", "out_channels", "embedding_dim", "num_heads"):
        if hasattr(module, name):
            return int(getattr(module, name))
    raise AssertionError(f"{type(module).__name__} is not sliced")


@dataclass(frozen=True)
class SliceOf:
    """Elements start..stop-1 along `dim` of a whole parameter."""

    whole: nn.Parameter
    dim: int
    start: int
    stop: int

    def of(self, whole: Tensor) -> Tensor:
        return whole.narrow(self.dim, self.start, self.stop - self.start)


@dataclass(frozen=True)
class SlicedLayer:
    """One layer in K slices."""

    name: str
    module: nn.Module
    is_row: bool  # cut along its inputs, after a column layer
    num_slices: int
    leaves: tuple[nn.Parameter, ...]  # the weight's slices, then the bias's; a row layer's bias stays whole
    parts: Mapping[str, SliceOf]  # by the leaf's name, in the order of `leaves`

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        return self.leaves[: self.num_slices]

    @property
    def biases(self) -> tuple[nn.Parameter, ...]:
        return self.leaves[self.num_slices :]

    @property
    def channel_dim(self) -> int:
        """Dimension of the output that the slices cut."""
        return 1 if isinstance(self.module, CONVOLUTIONS) else -1

    def wholes(self) -> list[tuple[nn.Parameter, int, list[nn.Parameter]]]:
        """(parameter, dim, slices in order) of every parameter that is cut along `dim`."""
        found: dict[int, tuple[nn.Parameter, int, list[nn.Parameter]]] = {}
        for part, leaf in zip(self.parts.values(), self.leaves, strict=True):
            found.setdefault(id(part.whole), (part.whole, part.dim, []))[2].append(leaf)
        return list(found.values())

    def column(self, k: int, x: Tensor, here: "SlicedRegion") -> Tensor:
        """Slice k of the layer's output for joint rows x."""
        weight, bias = self.weights[k], self.biases[k] if self.biases else None
        place = here.place_of(weight)
        module: Any = self.module
        if isinstance(module, nn.Linear):
            return linear_into(x, weight, bias, place)
        if isinstance(module, CONVOLUTIONS):
            output: Tensor = module._conv_forward(x, weight, bias)
            return output
        if isinstance(module, nn.Embedding):
            return F.embedding(x, weight, module.padding_idx)
        return F.embedding_bag(
            x, weight, mode=module.mode, include_last_offset=module.include_last_offset, padding_idx=module.padding_idx
        )

    def rows_of(self, x: Tensor) -> Tensor:
        """A shard's input with its rows, and whatever else a row-wise layer does not mix, in dim 0."""
        if isinstance(self.module, nn.Linear):
            x = x.reshape(-1, x.shape[-1])
        elif isinstance(self.module, nn.Embedding):
            x = x.reshape(-1)
        return x.contiguous()

    def rows_of_output(self, grad: Tensor) -> Tensor:
        """An output's gradient, in the same form."""
        flat = isinstance(self.module, nn.Linear | nn.Embedding)
        return (grad.reshape(-1, grad.shape[-1]) if flat else grad).contiguous()

    def shaped(self, y: Tensor, x_shape: torch.Size) -> Tensor:
        """A shard's rows of the output (column) or of the sum (row), for an input of the shape given."""
        if isinstance(self.module, nn.Linear):
            return y.view(*x_shape[:-1], y.shape[-1])
        return y.view(*x_shape, y.shape[-1]) if isinstance(self.module, nn.Embedding) else y

    def shaped_input(self, dx: Tensor, x_shape: torch.Size) -> Tensor:
        """A shard's rows of the input's gradient, in the input's shape."""
        return dx.view(x_shape)


def copied(part: SliceOf) -> Tensor:
    """A slice's values."""
    return part.of(part.whole.detach()).contiguous()


def slice_layer(
    name: str, module: nn.Module, *, is_row: bool, sizes: Sequence[int], values: Callable[[SliceOf], Tensor] = copied
) -> SlicedLayer:
    """Cut `module` into slices of `sizes`, with leaves of `values`."""
    num_slices = len(sizes)
    column_dim = 1 if isinstance(module, EMBEDDINGS) else 0
    parts: dict[str, SliceOf] = {}
    starts = [sum(sizes[:k]) for k in range(num_slices)]
    for local, whole in module.named_parameters(recurse=False):
        if local == "bias" and is_row:
            continue
        dim = 0 if local == "bias" else (1 if is_row else column_dim)
        for start, size in zip(starts, sizes, strict=True):
            cut = f"{start}:{start + size}"
            parts[f"{name}.{local}[{cut if dim == 0 else f':,{cut}'}]"] = SliceOf(whole, dim, start, start + size)
    leaves = tuple(nn.Parameter(values(part)) for part in parts.values())
    return SlicedLayer(name, module, is_row, num_slices, leaves, parts)


def slice_sizes(module: nn.Module, num_slices: int) -> tuple[int, ...]:
    """Sizes of slices, as equal as can be: 7 outputs in 2 slices are 4,3."""
    return equal_shares(outputs_of(module), num_slices)


@dataclass
class SlicedRegion:
    """This worker's slices of a region."""

    region: Region
    column: SlicedLayer
    row: SlicedLayer | None
    own: range  # slices
    model: nn.Module
    place_of: Callable[[nn.Parameter], Place]

    @property
    def sizes(self) -> list[int]:
        """Outputs of the column layer, per slice."""
        return [part.stop - part.start for part in list(self.column.parts.values())[: len(self.column.weights)]]

    def forward(
        self, x: Tensor, stream: tuple[int | str, ...], *, needs_grad: bool
    ) -> tuple["RegionCell", list[Tensor]]:
        """Compute all own slices for joint rows x. `stream` keys the random numbers that they draw, per slice."""
        cell = RegionCell()
        outputs = []
        for k in self.own:
            random_streams.enter(*stream, self.column.name, k)
            x_k = x.detach().requires_grad_(needs_grad)
            y = self.column.column(k, x_k, self)
            values = {self.region.column_output: y}
            for call in self.region.between:
                perform(call, values, self.model)
                y = values[call.makes[0]]
            if self.row is not None:
                weight = self.row.weights[k]
                y = linear_into(y, weight, None, self.place_of(weight))
            cell.inputs.append(x_k)
            cell.seeds.append(Seed(y))
            outputs.append(y.detach())
        return cell, outputs


@dataclass
class RegionCell:
    """State of a set of shards in a region between forward and backward; one entry per own slice."""

    inputs: list[Tensor] = field(default_factory=list)
    seeds: list[Seed] = field(default_factory=list)  # for the outputs' gradients

    def backward(self, grads: Sequence[Tensor]) -> list[Tensor | None]:
        """From the outputs' gradients to the input's, one summand per own slice."""
        for seed, grad in zip(self.seeds, grads, strict=True):
            backward_from([seed], [grad])
        return [x.grad for x in self.inputs]
