"""The reduction where a codec applies to some edges of the tree: piece by piece, each node crossing its edge."""

from torch import Tensor

from samestep.numerics.reduction_tree import Node, fold_plan, promoted
from samestep.parallel.gradients.layout import Piece
from samestep.parallel.gradients.reduction import TreeReduction


class CompressedReduction(TreeReduction):
    """A tree reduction whose sums cross compressed edges."""

    def sum_pieces(self, num_shards: int, scale: float, num_sets: int = 1) -> int:
        self._read[num_shards] = 0
        for owned in self._pieces:
            for entry in (owned.entry, *self._layout.aliases(owned.entry)):
                is_slice = self._ownership[entry].is_slice
                piece, num_units = Piece(entry, owned.start, owned.stop), num_sets if is_slice else num_shards
                found = self._summed(piece, num_units, num_shards)
                total = self._part(self._rank, 0, piece)
                if found.data_ptr() != total.data_ptr():
                    total.copy_(found)
                total.mul_(scale)
        for total, further in self._further_names:
            total.add_(further)
        return self._read[num_shards]

    def _summed(self, piece: Piece, num_units: int, num_shards: int) -> Tensor:
        """A piece's sum, in the memory of its first operand."""
        sources, slots = self._sources(piece, num_units, num_shards), dict[int, Tensor]()
        crossed = self.exchange.crossed(piece, num_units)
        for (node, tensor), fold in zip(sources, fold_plan(tuple(n for n, _ in sources), num_units).folds, strict=True):
            if node not in crossed:
                self._cross(node, piece, tensor, num_units)
            for slot in fold.into:
                tensor = slots[slot].add_(tensor)
                node = promoted(Node(node.level + 1, node.index >> 1), num_units)
                self._cross(node, piece, tensor, num_units)
            if not fold.into:
                slots[fold.slot] = tensor
        return slots[0]

    def _cross(self, node: Node, piece: Piece, tensor: Tensor, num_units: int) -> None:
        assert self._edges is not None, "a codec applies to some edges"
        if not self._ownership[piece.entry].is_slice and self._edges.applies_to(node, piece.entry, num_units):
            self._edges.cross(node, piece, tensor, num_units)
