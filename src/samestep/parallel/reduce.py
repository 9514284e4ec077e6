"""Bring the published partial gradients together: each owner sums its pieces, in the tree's order.

Worker w reads its pieces from every worker's published slots and leaves the sum in its own slot 0:

    slots          worker 0: nodes a, b        worker 1: nodes c, d
    worker 0       pieces [0, k):  a + (b + (c + d))  or whatever the tree over S says
    worker 1       pieces [k, n):  the same
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from samestep.parallel.layout import Layout, Piece
from samestep.plan import Plan
from samestep.tree import Node, fold_plan, local_plan

SUM_CHUNK = 65_536  # elements summed at a time: several operands of a chunk fit in L2


Holder = tuple[int, int]  # worker, slot
Chunk = tuple[list[Tensor], Tensor]  # the partial sums, one per node; where their sum goes


def published_nodes(plan: Plan, num_shards: int) -> tuple[tuple[Node, ...], tuple[Holder, ...]]:
    """The nodes that the workers publish in a step of `num_shards` shards, and who holds each where."""
    nodes: list[Node] = []
    holders: list[Holder] = []
    for rank in range(plan.workers):
        left = local_plan(plan.shards_of(rank, num_shards), num_shards).left
        nodes += left
        holders += [(rank, slot) for slot in range(len(left))]
    return tuple(nodes), tuple(holders)


def num_published(plan: Plan, rank: int) -> int:
    """Slots in fabric memory that worker `rank` needs; none when it works alone."""
    if plan.workers == 1:
        return 0
    sizes = range(1, plan.numerics.shards + 1)
    return max(1, *(len(local_plan(plan.shards_of(rank, n), n).left) for n in sizes))


class TreeReduction:
    """The reduction of one worker's pieces, for any number of shards a step may have.

    `slots[w]` are worker w's published slots, each a flat memory.
    """

    def __init__(
        self, layout: Layout, plan: Plan, rank: int, pieces: Sequence[Piece], slots: Sequence[Sequence[Tensor]]
    ) -> None:
        self._layout, self._plan, self._rank = layout, plan, rank
        self._pieces, self._slots = pieces, slots
        self._chunks: dict[int, list[Chunk]] = {}

    def sum_pieces(self, num_shards: int, scale: float) -> None:
        """Sum every owned piece over the shards and multiply by `scale` (1 leaves the bits alone).

        All additions but the last overwrite published partial sums, which nobody else reads here.
        """
        nodes, holders = published_nodes(self._plan, num_shards)
        order = addition_order(nodes, num_shards)
        first, last = order[:-1], order[-1] if order else None
        if num_shards not in self._chunks:
            self._chunks[num_shards] = list(self._chunks_of(holders))
        for parts, total in self._chunks[num_shards]:
            for into, other in first:
                parts[into].add_(parts[other])
            if last is not None:
                torch.add(parts[last[0]], parts[last[1]], out=total)
            elif holders[0] != (self._rank, 0):
                total.copy_(parts[0])
            if scale != 1.0:
                total.mul_(scale)
        for piece in self._pieces:
            for alias in self._layout.aliases(piece.entry):
                self.total(piece).add_(self._part((self._rank, 0), alias, piece))

    def total(self, piece: Piece) -> Tensor:
        """The summed gradient of an owned piece, 1-D in storage order."""
        return self._part((self._rank, 0), piece.entry, piece)

    def _part(self, holder: Holder, entry: int, piece: Piece) -> Tensor:
        rank, slot = holder
        return self._layout.flat(self._slots[rank][slot], entry)[piece.start : piece.stop]

    def _chunks_of(self, holders: Sequence[Holder]) -> Iterator[Chunk]:
        for piece in self._pieces:
            for entry in (piece.entry, *self._layout.aliases(piece.entry)):
                parts = [torch.split(self._part(holder, entry, piece), SUM_CHUNK) for holder in holders]
                totals = torch.split(self._part((self._rank, 0), entry, piece), SUM_CHUNK)
                for *chunk, total in zip(*parts, totals, strict=True):
                    yield chunk, total


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
