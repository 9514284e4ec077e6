"""Bring the published partial gradients together: each owner sums its pieces, in the tree's order.

Worker w reads its pieces from every worker's published slots and leaves the sum in its own slot 0:

    slots          worker 0: nodes a, b        worker 1: nodes c, d
    worker 0       pieces [0, k):  a + (b + (c + d))  or whatever the tree over S says
    worker 1       pieces [k, n):  the same
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.numerics.addition_order import Addition, addition_order
from samestep.numerics.reduction_tree import Node
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership

SUM_CHUNK = 65_536  # elements summed at a time: several operands of a chunk fit in L2

Source = tuple[Node, Tensor]  # a partial sum: of which node, 1-D


@dataclass(frozen=True)
class Chunk:
    """A run of elements: the partial sums, one per node, in which order they are added, and where to."""

    first: list[Addition]
    last: Addition | None
    parts: list[Tensor]
    total: Tensor
    is_there: bool  # the only partial sum already lies where the total goes


class OneHost:
    """The exchange between hosts of a run that has one host: nothing to do. `host_exchange.py` is that of several."""

    def begin(self, num_shards: int) -> None:
        """Expect the sums that other hosts will send in a step."""

    def post(self) -> None:
        """Send the host's sums; call it when all its workers have published."""

    def arrive(self) -> None:
        """Wait for the sums of other hosts."""

    def finish(self) -> None:
        """Send the host's sums and wait for those of others."""
        self.post()
        self.arrive()

    def publish(self, *, everywhere: bool = False) -> None:
        """Send new values to the hosts that compute with them and do not make them; or to the others."""

    def sources(self, piece: Piece, num_units: int) -> list[Source]:
        """All partial sums of a piece, in shard order, where other hosts have gradients of it; else nothing."""
        return []

    def crossed(self, piece: Piece, num_units: int) -> set[Node]:
        """The nodes of `sources` that have crossed the edge to their parent already."""
        return set()


class TreeReduction:
    """The reduction of one worker's pieces, for any number of shards a step may have.

    `slots[w]` are worker w's published slots, each a flat memory; `ownership[i]` is entry i's. `exchange` brings the
    sums of other hosts. edges: of the tree, that a codec applies to; see `compressed_reduction.py`.
    """

    def __init__(
        self,
        layout: Layout,
        ownership: Sequence[Ownership],
        rank: int,
        pieces: Sequence[Piece],
        slots: Sequence[Sequence[Tensor]],
        exchange: OneHost | None = None,
        edges: CompressedEdges | None = None,
    ) -> None:
        self._layout, self._ownership, self._rank = layout, ownership, rank
        self._pieces, self._slots, self.exchange, self._edges = pieces, slots, exchange or OneHost(), edges
        self._chunks: dict[int, list[Chunk]] = {}
        self._read: dict[int, int] = {}  # bytes that others computed, per number of shards
        self._totals = {piece: self._part(rank, 0, piece) for piece in pieces}
        self._further_names = [  # the sum of a tied parameter's first name, and that of one of its others
            (self._totals[piece], self._part(rank, 0, Piece(alias, piece.start, piece.stop)))
            for piece in pieces
            for alias in layout.aliases(piece.entry)
        ]

    def sum_pieces(self, num_shards: int, scale: float, num_sets: int = 1) -> int:
        """Sum every owned piece over the shards and multiply by `scale` (1 leaves the bits alone).

        num_sets: join sets of the step, the units of slices. Returns how many bytes other workers computed. All
        additions but the last overwrite published partial sums, which nobody else reads here.
        """
        if num_shards not in self._chunks:
            self._read[num_shards] = 0
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
        for total, further in self._further_names:
            total.add_(further)
        return self._read[num_shards]

    def total(self, piece: Piece) -> Tensor:
        """The summed gradient of an owned piece, 1-D in storage order."""
        return self._totals[piece]

    def _part(self, rank: int, slot: int, piece: Piece) -> Tensor:
        return self._layout.flat(self._slots[rank][slot], piece.entry)[piece.start : piece.stop]

    def _chunks_of(self, num_shards: int, num_sets: int) -> Iterator[Chunk]:
        for owned in self._pieces:
            for entry in (owned.entry, *self._layout.aliases(owned.entry)):
                piece = Piece(entry, owned.start, owned.stop)
                num_units = num_sets if self._ownership[entry].is_slice else num_shards
                sources = self._sources(piece, num_units, num_shards)
                order = addition_order(tuple(node for node, _ in sources), num_units)
                first, last = order[:-1], order[-1] if order else None
                parts = [torch.split(part, SUM_CHUNK) for _, part in sources]
                total = self._part(self._rank, 0, piece)
                is_there = sources[0][1].data_ptr() == total.data_ptr()
                for *chunk, into in zip(*parts, torch.split(total, SUM_CHUNK), strict=True):
                    yield Chunk(first, last, chunk, into, is_there)

    def _sources(self, piece: Piece, num_units: int, num_shards: int) -> list[Source]:
        """The partial sums of a piece, in shard order."""
        if sources := self.exchange.sources(piece, num_units):
            return sources
        nodes, holders = self._ownership[piece.entry].published(num_units)
        parts = [self._part(rank, slot, piece) for rank, slot in holders]
        foreign = [part.nbytes for (rank, _), part in zip(holders, parts, strict=True) if rank != self._rank]
        self._read[num_shards] += sum(foreign)
        return list(zip(nodes, parts, strict=True))
