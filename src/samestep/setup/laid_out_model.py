"""A model with its optimizer and its layout, and the part of it that each worker has under a plan."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn, optim

from samestep.codec.edge_codec import parse_codec
from samestep.parallel.cutting.cut import Cut
from samestep.parallel.cutting.slices import SlicedLayer
from samestep.parallel.execution.cut_recipe import CutRecipe
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.job_optimizer import is_elementwise
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership, slice_ownership, stage_ownership
from samestep.parallel.gradients.stretches import owners
from samestep.parallel.lazy_init.lazy_replay import LazyModel
from samestep.plan.plan import Plan

Names = list[tuple[str, nn.Parameter, int | None]]


@dataclass(frozen=True)
class LaidOutModel:
    """A model with its optimizer, not yet spread over workers."""

    model: nn.Module
    optimizer: optim.Optimizer
    names: Names
    layout: Layout
    initial: LazyModel | None = None  # how to compute the initial values, where the model has none yet
    recipe: CutRecipe | None = None  # of a cut model
    sliced: Mapping[str, SlicedLayer] = field(default_factory=dict)

    @property
    def structure(self) -> Cut | None:
        return None if self.recipe is None else next(iter(self.recipe.known.values()))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, sliced layers have their whole weights, as copies."""
        try:
            for layer in self.sliced.values():
                for whole, dim, leaves in layer.wholes():
                    whole.data = torch.cat([leaf.detach() for leaf in leaves], dim)
            yield
        finally:
            self.drop_wholes()

    def drop_wholes(self) -> None:
        for layer in self.sliced.values():
            for whole, _, leaves in layer.wholes():
                whole.data = torch.zeros(1, dtype=whole.dtype, device=leaves[0].device).expand(whole.shape)


@contextmanager
def hollow(prepared: LaidOutModel) -> Iterator[None]:
    """Inside, a model that has no values yet computes with zeros that take no memory."""
    params = [] if prepared.initial is None else list(prepared.model.parameters())
    before = [param.data for param in params]
    zeros: dict[int, Tensor] = {}  # one for all names of a tied parameter
    for param in params:
        param.data = zeros.setdefault(param.data_ptr(), torch.zeros(1, dtype=param.dtype)).expand(param.shape)
    try:
        yield
    finally:
        for param, data in zip(params, before, strict=True):
            param.data = data


def entry_segments(prepared: LaidOutModel) -> list[int]:
    """The segment in which each entry of the layout lives."""
    structure = prepared.structure
    segment_of = dict(structure.homes) if structure else {}
    for number, segment in enumerate(structure.segments if structure else ()):
        for layer in segment.region.layers if segment.region else ():
            segment_of |= dict.fromkeys(prepared.sliced[layer].parts, number)
    return [segment_of.get(entry.name, 0) for entry in prepared.layout.entries]


def ownership_of(prepared: LaidOutModel, plan: Plan) -> list[Ownership]:
    """The workers that compute and own each entry of the layout."""
    structure = prepared.structure
    if structure is None:
        return [stage_ownership(plan, 0)] * len(prepared.layout.entries)
    owners: dict[str, int] = {}
    for stage in plan.stages:
        counts = dict(stage.slices)
        for name, layer in prepared.sliced.items():
            if name in counts:
                of_slice = [rank for rank, n in zip(stage.workers, counts[name], strict=True) for _ in range(n)]
                owners |= zip(layer.parts, of_slice * (len(layer.parts) // layer.num_slices), strict=True)
    segments = entry_segments(prepared)
    return [
        slice_ownership(plan, owners[entry.name])
        if entry.name in owners
        else stage_ownership(plan, structure.segments[s].stage)
        for entry, s in zip(prepared.layout.entries, segments, strict=True)
    ]


def pieces_of(
    prepared: LaidOutModel, plan: Plan, ownership: Sequence[Ownership], hosts: Sequence[int]
) -> list[list[Piece]]:
    """The pieces that each worker updates, in the layout's order. hosts: the host of every worker."""
    edges = edges_of(plan, prepared.layout)
    whole = not is_elementwise(prepared.optimizer) or (edges is not None and edges.wants_whole)
    return owners(prepared.layout, ownership, hosts, whole=whole)


def edges_of(plan: Plan, layout: Layout) -> CompressedEdges | None:
    codec = parse_codec(plan.numerics.codec, "the numerics")
    return None if codec is None else CompressedEdges(codec, layout, plan.numerics.shards)


def used_parameters(
    prepared: LaidOutModel, ownership: Sequence[Ownership], rank: int
) -> list[tuple[str, nn.Parameter]]:
    """The parameters that worker `rank` computes with, also those that no optimizer holds."""
    foreign = {
        id(e.param) for e, one in zip(prepared.layout.entries, ownership, strict=True) if rank not in one.workers
    }
    foreign |= {id(entry.whole) for entry in prepared.layout.entries if entry.along is not None}
    return [(name, param) for name, param in prepared.model.named_parameters() if id(param) not in foreign]
