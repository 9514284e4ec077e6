"""Bring the published partial gradients together: each owner sums its pieces, in the tree's order.

Worker w reads its pieces from every worker's published slots and leaves the sum in its own slot 0:

    slots          worker 0: nodes a, b        worker 1: nodes c, d
    worker 0       pieces [0, k):  a + (b + (c + d))  or whatever the tree over S says
    worker 1       pieces [k, n):  the same
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from samestep.numerics.reduction_tree import Node, fold_plan, promoted
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.host_exchange import HostExchange, Source
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Holder, Ownership

SUM_CHUNK = 65_536  # elements summed at a time: several operands of a chunk fit in L2


Addition = tuple[int, int]  # positions of nodes: into, other


@dataclass(frozen=True)
class Chunk:
    """A run of elements: the partial sums, one per node, in which order they are added, and where to."""

    first: list[Addition]
    last: Addition | None
    parts: list[Tensor]
    total: Tensor
    is_there: bool  # the only partial sum already lies where the total goes


class TreeReduction:
    """The reduction of one worker's pieces, for any number of shards a step may have.

    `slots[w]` are worker w's published slots, each a flat memory; `homes[i]` is entry i's. `between`
    brings what workers of other hosts published.
    """

    def __init__(
        self,
        layout: Layout,
        homes: Sequence[Ownership],
        rank: int,
        pieces: Sequence[Piece],
        slots: Sequence[Sequence[Tensor]],
        between: HostExchange | None = None,
        edges: CompressedEdges | None = None,
    ) -> None:
        self._layout, self._homes, self._rank = layout, homes, rank
        self._pieces, self._slots = pieces, slots
        self.between, self._edges = between, edges
        self._chunks: dict[int, list[Chunk]] = {}
        self.read: dict[int, int] = {}  # bytes that others computed, per number of shards

    def sum_pieces(self, num_shards: int, scale: float, num_sets: int = 1) -> None:
        """Sum every owned piece over the shards and multiply by `scale` (1 leaves the bits alone).

        All additions but the last overwrite published partial sums, which nobody else reads here.
        """
        if self._edges is not None:
            self._sum_over_edges(self._edges, num_shards, scale, num_sets)
            return
        if num_shards not in self._chunks:
            self.read[num_shards] = 0
            self._chunks[num_shards] = list(self._chunks_of(num_shards, num_sets))
        for chunk in self._chunks[num_shards]:
            for into, other in chunk.first:
                chunk.parts[into].add_(chunk.parts[other])
            if chunk.last is not None:
                torch.add(chunk.parts[chunk.last[0]], chunk.parts[chunk.last[1]], out=chunk.total)
            elif not chunk.is_there:
                chunk.total.copy_(chunk.parts[0])
            if scale != 1.0:
                chunk.total.mul_(scale)
        for piece in self._pieces:
            for alias in self._layout.aliases(piece.entry):
                self.total(piece).add_(self._part((self._rank, 0), alias, piece))

    def _sum_over_edges(self, edges: CompressedEdges, num_shards: int, scale: float, num_sets: int) -> None:
        """The same where a codec applies to some edges: piece by piece, each node crossing its edge."""
        self.read[num_shards] = 0
        for piece in self._pieces:
            for entry in (piece.entry, *self._layout.aliases(piece.entry)):
                own, is_slice = Piece(entry, piece.start, piece.stop), self._homes[entry].is_slice
                num_units = num_sets if is_slice else num_shards
                sources = self._sources(entry, piece, num_units, num_shards)
                spread = self.between is not None and self.between.is_spread(entry)
                crossed = self.between.crossed(entry, piece, num_units) if self.between and spread else frozenset()
                plan = fold_plan(tuple(node for node, _ in sources), num_units)
                slots: dict[int, Tensor] = {}
                for (node, tensor), fold in zip(sources, plan.folds, strict=True):
                    if node not in crossed and not is_slice and edges.applies_to(node, entry, num_units):
                        edges.cross(node, own, tensor, num_units)
                    for slot in fold.into:
                        tensor = slots[slot].add_(tensor)
                        node = promoted(Node(node.level + 1, node.index >> 1), num_units)
                        if not is_slice and edges.applies_to(node, entry, num_units):
                            edges.cross(node, own, tensor, num_units)
                    if not fold.into:
                        slots[fold.slot] = tensor
                total = self._part((self._rank, 0), entry, piece)
                if slots[0].data_ptr() != total.data_ptr():
                    total.copy_(slots[0])
                total.mul_(scale)
            for alias in self._layout.aliases(piece.entry):
                self.total(piece).add_(self._part((self._rank, 0), alias, piece))

    def total(self, piece: Piece) -> Tensor:
        """The summed gradient of an owned piece, 1-D in storage order."""
        return self._part((self._rank, 0), piece.entry, piece)

    def _part(self, holder: Holder, entry: int, piece: Piece) -> Tensor:
        rank, slot = holder
        return self._layout.flat(self._slots[rank][slot], entry)[piece.start : piece.stop]

    def _chunks_of(self, num_shards: int, num_sets: int) -> Iterator[Chunk]:
        for piece in self._pieces:
            for entry in (piece.entry, *self._layout.aliases(piece.entry)):
                num_units = num_sets if self._homes[entry].is_slice else num_shards
                sources = self._sources(entry, piece, num_units, num_shards)
                order = addition_order(tuple(node for node, _ in sources), num_units)
                first, last = order[:-1], order[-1] if order else None
                parts = [torch.split(part, SUM_CHUNK) for _, part in sources]
                total = self._part((self._rank, 0), entry, piece)
                is_there = sources[0][1].data_ptr() == total.data_ptr()
                for *chunk, into in zip(*parts, torch.split(total, SUM_CHUNK), strict=True):
                    yield Chunk(first, last, chunk, into, is_there)

    def _sources(self, entry: int, piece: Piece, num_units: int, num_shards: int) -> list[Source]:
        """The partial sums of a piece, in shard order."""
        if self.between is not None and self.between.is_spread(entry):
            return self.between.sources(entry, piece, num_units)
        nodes, holders = self._homes[entry].published(num_units)
        size = self._layout.entries[entry].param.element_size() * (piece.stop - piece.start)
        self.read[num_shards] += size * sum(rank != self._rank for rank, _ in holders)
        return [(node, self._part(holder, entry, piece)) for node, holder in zip(nodes, holders, strict=True)]


@cache
def addition_order(nodes: tuple[Node, ...], num_shards: int) -> list[tuple[int, int]]:
    """The additions that join `nodes` (in shard order) into the root: pairs (into, other) of positions.

    After a pair, `into` holds the sum. For nodes (2,0) (0,4) (0,5) (1,3), the publication of 5,3 of
    eight shards: (1, 2), (1, 3), (0, 1).
    """
    open_nodes: list[int] = []  # positions that hold the tree's open sums, as the slots of the fold
    order: list[tuple[int, int]] = []
    for position, fold in enumerate(fold_plan(nodes, num_shards).folds):
        carry = position
        for slot in fold.into:
            order.append((open_nodes[slot], carry))
            carry = open_nodes[slot]
        del open_nodes[fold.into[-1] + 1 if fold.into else fold.slot :]
        if not fold.into:
            open_nodes.append(position)
    assert len(open_nodes) == 1, f"{nodes} do not cover {num_shards} shards"
    return order
