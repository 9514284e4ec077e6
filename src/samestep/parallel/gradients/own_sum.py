"""The reduction of a worker that holds every shard: it has folded them already, and publishes nothing."""

from torch import Tensor

from samestep.parallel.gradients.layout import Layout, Piece, storage_order
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.slots import GradientSlots


class OwnSum(TreeReduction):
    """The roots of the tree, as this worker's own fold left them."""

    def __init__(self, layout: Layout, gradients: GradientSlots) -> None:
        super().__init__(layout, [], 0, [], [])
        self._gradients = gradients

    def sum_pieces(self, num_shards: int, scale: float, num_sets: int = 1) -> int:
        for entry, _ in self._layout.owners():
            total = self._gradients.total(entry)
            if scale != 1.0:
                total.mul_(scale)
            for alias in self._layout.aliases(entry):
                other = self._gradients.total(alias)
                total.add_(other.mul_(scale) if scale != 1.0 else other)
        return 0

    def total(self, piece: Piece) -> Tensor:
        return storage_order(self._gradients.total(piece.entry))
