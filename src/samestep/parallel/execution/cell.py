"""One shard in one dense segment: a cell of the grid, with an autograd graph of its own.

    values      x ---.                          .--- y          x, y without graph: they may be sent
    the cell         `-> enter -> calls -> out -'
    gradients   dx <--- caught <- backward <------- dy

A value that later segments take as well passes by: its gradient from there is put in where it enters,
before this segment's own uses add theirs. Autograd adds the consumers of a tensor last first, so the
sum has the order, and the bits, of the uncut graph.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from samestep.parallel.cutting.cut import Segment
from samestep.parallel.cutting.recording import perform
from samestep.parallel.cutting.windows import Window, view_of
from samestep.parallel.gradients.seeds import Seed, backward_from

Gradients = dict[int, Tensor]  # by value
NO_WINDOWS: Mapping[int, Window] = MappingProxyType({})


class _Enter(torch.autograd.Function):
    """The identity. Its gradient is caught as it comes, strides included, which a leaf's would not keep."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, value: int, caught: Gradients) -> Tensor:
        ctx.value, ctx.caught = value, caught
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.caught[ctx.value] = grads[0]
        return None, None, None


class Cell:
    """Between the forward and the backward of a shard through a segment."""

    def __init__(
        self,
        segment: Segment,
        values: dict[int, Tensor],
        needs: set[int],
        model: nn.Module,
        windows: Mapping[int, Window] = NO_WINDOWS,
    ) -> None:
        """Run the segment; `values` (without graph) gets what it gives, `needs` which of it needs a gradient.

        windows: of the values that the segment changes under several names.
        """
        self._caught: Gradients = {}
        entered: dict[int, Tensor] = {}
        self.local = dict(values)
        covered = {value for value, _ in segment.views}
        for value in segment.takes:
            if value in needs and value not in covered:
                leaf = values[value].detach().requires_grad_()
                self.local[value] = entered[value] = _Enter.apply(leaf, value, self._caught)  # type: ignore[no-untyped-call]
        for value in segment.changes - covered:  # in place, and what was taken belongs to another graph
            self.local[value] = self.local[value].clone()
        for value, base in segment.views:
            self.local[value] = view_of(self.local[base], windows[base], windows[value])
        for call in segment.calls:
            perform(call, self.local, model)
        given = {value: self.local[value] for value in segment.gives}
        values |= {value: tensor.detach() for value, tensor in given.items()}
        needs.difference_update(given)
        needs |= {value for value, tensor in given.items() if tensor.requires_grad}
        # Autograd runs what was made last first: made in reverse, the seeds come in in this order.
        passing = {value: tensor for value, tensor in entered.items() if value not in given}
        open_ends = [(v, t) for v, t in [*given.items(), *passing.items()] if t.requires_grad]
        self._seeds = dict(reversed([(value, Seed(tensor)) for value, tensor in reversed(open_ends)]))

    def settle(self) -> None:
        """Forget what only the loss wanted."""
        self.local = {}

    def backward(self, grads: Gradients, objective: Tensor | None) -> None:
        """From the gradients of what was given (and passed by) to those of what was taken."""
        roots: list[Tensor | Seed] = [] if objective is None else [objective]
        found = [torch.ones_like(root) for root in roots if isinstance(root, Tensor)]
        for value, seed in self._seeds.items():
            if value in grads:
                roots.append(seed)
                found.append(grads.pop(value))
        backward_from(roots, found)
        grads |= self._caught
