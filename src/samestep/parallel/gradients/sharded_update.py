"""The sharded update: every worker updates the pieces it owns, with the user's own optimizer.

The optimizer is built over the real parameters (so that `p.ndim >= 2` groups work) and then handed
the worker's pieces in their stead: a whole parameter itself, or a 1-D slice of it. Elementwise
optimizers give the same bits either way, because cuts lie on the 32,768-element grid. Its state thus
exists once over all workers (ZeRO stage 1, Rajbhandari et al. 2020).
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn, optim

from samestep.parallel.gradients.layout import Layout, Piece, storage_order
from samestep.parallel.gradients.optimizer_state import OptimizerState, cut_state


class ShardedUpdate:
    """The optimizer of one worker, over its pieces."""

    def __init__(self, optimizer: optim.Optimizer, layout: Layout, pieces: Sequence[Piece]) -> None:
        self.optimizer = optimizer
        self.targets: list[tuple[Piece, nn.Parameter]] = [(p, _target(layout, p)) for p in pieces]
        entries_of: dict[int, list[int]] = {}
        for i, entry in layout.owners():
            entries_of.setdefault(id(entry.whole), []).append(i)
        targets: dict[int, list[tuple[Piece, nn.Parameter]]] = {}
        for piece, target in self.targets:
            targets.setdefault(piece.entry, []).append((piece, target))
        self.state = OptimizerState(optimizer, self.targets)
        old_state, optimizer.state = optimizer.state, type(optimizer.state)(dict)
        self.group_names: list[list[str]] = []
        for group in optimizer.param_groups:
            entries = [i for param in group["params"] for i in entries_of.get(id(param), ())]
            self.group_names.append([layout.entries[i].name for i in entries])
            for i in entries:
                whole = layout.entries[i].whole
                for piece, target in targets.get(i, ()):
                    if whole in old_state:  # Adagrad makes its state at once
                        optimizer.state[target] = cut_state(old_state[whole], layout.entries[i], piece, target)
            group["params"] = [target for i in entries for _, target in targets.get(i, ())]

    def step(self, gradient_of: Callable[[Piece], Tensor | None]) -> None:
        """Update every owned piece that has a gradient."""
        for piece, target in self.targets:
            grad = gradient_of(piece)
            target.grad = None if grad is None else grad.as_strided(target.shape, target.stride())
        self.optimizer.step()
        for _, target in self.targets:
            target.grad = None


def _target(layout: Layout, piece: Piece) -> nn.Parameter:
    param = layout.entries[piece.entry].param
    if piece.stop - piece.start == param.numel():
        return param
    return nn.Parameter(storage_order(param.data)[piece.start : piece.stop])
