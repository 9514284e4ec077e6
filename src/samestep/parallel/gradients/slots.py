"""A shard's gradients, folded into the reduction tree as they arrive.

Backward yields a parameter's gradient once per shard. It is stored in its slot or added to what the
tree's order says, at once, while it is in cache:

    shard 0   slot 0 = g                                    stored
    shard 1   slot 0 += g                                   node (1,0)
    shard 2   slot 1 = g
    shard 3   slot 1 += g; slot 0 += slot 1                 node (2,0)

Slots that a worker publishes lie in fabric memory, where the owners of the pieces read them; a
gradient is written there once, by the kernel itself where it can (see `linear.py`). The other slots
keep the tensors that autograd made. Where gradients of weights are deferred (`deferred.py`), a shard's gradients come
in two parts; each parameter's are folded in shard order all the same.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.numerics.reduction_tree import Fold
from samestep.parallel.gradients.compressed_edges import CompressedFold
from samestep.parallel.gradients.deferred import DEFERRED
from samestep.parallel.gradients.layout import Layout
from samestep.parallel.gradients.linear import Place


@dataclass
class _Arrivals:
    """The gradients of one shard that have arrived so far."""

    shard: int
    fold: Fold
    present: bytearray
    edges: CompressedFold | None
    may_wait: bool = False  # for the same parameter's gradient of an earlier shard
    waiting: dict[int, Tensor] = field(default_factory=dict)  # by entry
    asked: set[int] = field(default_factory=set)


class GradientSlots:
    """The gradient slots of one worker."""

    def __init__(self, layout: Layout, published: Sequence[Tensor]) -> None:
        self._layout = layout
        self._entry_of = {id(entry.param): i for i, entry in enumerate(layout.entries)}
        self._fixed: list[list[Tensor]] = []
        self._loose: dict[int, list[Tensor | None]] = {}
        # None outside backward: a gradient that forward takes for itself is no shard's gradient yet.
        self._current: ContextVar[_Arrivals | None] = ContextVar("arrivals", default=None)
        self._paused: dict[tuple[int, int], _Arrivals] = {}  # by shard and segment
        self._turn = [0] * len(layout.entries)  # the next shard expected, per entry
        self._ends = list(self._turn)  # one after the last
        self.when_folded: Callable[[int], None] | None = None  # called when an entry's last gradient is folded
        self.when_arrived: Callable[[int, int, Tensor], None] | None = None  # called with shard, entry and gradient
        self.present = bytearray(len(layout.entries))  # which entries got a gradient from any shard
        self.publish_at(self.views_in(published))
        for i, entry in enumerate(layout.entries):
            entry.param.register_post_accumulate_grad_hook(partial(self._hook, i))  # type: ignore[no-untyped-call]

    def views_in(self, published: Sequence[Tensor]) -> list[list[Tensor]]:
        """The place of each entry in each slot."""
        return [[self._layout.view(memory, i) for i in range(len(self._turn))] for memory in published]

    def publish_at(self, views: list[list[Tensor]]) -> None:
        """Publish in other slots from the next step on; `views` are those of `views_in`."""
        self._fixed = views

    def begin_step(self, units: Sequence[range]) -> None:
        """units: per entry, the shards (of a slice: join sets) whose gradients this worker computes."""
        self._turn = [own.start for own in units]
        self._ends = [own.stop for own in units]
        self.present = bytearray(len(self._turn))

    def begin_shard(
        self, shard: int, fold: Fold, edges: CompressedFold | None = None, *, may_wait: bool = False
    ) -> None:
        """Take the gradients that arrive in this thread from now on as those of `shard`.

        edges: that a codec applies to. may_wait: the shard will be paused, and gradients of earlier ones may still be
        missing.
        """
        self._current.set(_Arrivals(shard, fold, bytearray(len(self._turn)), edges, may_wait))

    def pause_shard(self, segment: int) -> None:
        """Stop taking gradients of the shard; its deferred ones of a segment are still to come."""
        arrivals = self._current.get()
        assert arrivals is not None, "a shard begins before it pauses"
        self._current.set(None)
        self._paused[arrivals.shard, segment] = arrivals

    def resume_shard(self, shard: int, segment: int) -> None:
        """Take the deferred gradients of a shard; those of earlier shards are all there."""
        arrivals = self._paused.pop((shard, segment))
        self._current.set(arrivals)
        for entry, grad in arrivals.waiting.items():
            self._fold(entry, grad, arrivals)

    def place_of(self, param: nn.Parameter) -> Place | None:
        """The function that calls `place` for a parameter's entry; None for a parameter that has none."""
        entry = self._entry_of.get(id(param))
        return None if entry is None else lambda: self.place(entry)

    def place(self, entry: int) -> Tensor | None:
        """Memory to which a kernel may write this entry's gradient of the current shard; once per shard."""
        arrivals = self._current.get()
        if arrivals is None or arrivals.fold.into or arrivals.fold.slot >= len(self._fixed) or entry in arrivals.asked:
            return None
        if self._turn[entry] != arrivals.shard:  # an earlier shard's may still lie there
            return None
        arrivals.asked.add(entry)
        return self._fixed[arrivals.fold.slot][entry].detach()

    def end_shard(self, entries: Sequence[int] | None = None) -> None:
        """End the current shard. An entry (default: of all) without gradient counts as zero in the sums, and as absent
        for the optimizer."""
        arrivals = self._current.get()
        assert arrivals is not None, "a shard begins before it ends"
        self._current.set(None)
        if entries is None and 0 not in arrivals.present:
            return
        for i in range(len(arrivals.present)) if entries is None else entries:
            if not arrivals.present[i]:
                self._fold(i, torch.zeros_like(self._layout.entries[i].param, requires_grad=False), arrivals)

    def total(self, entry: int) -> Tensor:
        """The root of the tree, for a worker that holds every shard. Yields the tensor itself."""
        return self._at(0, entry)

    def drop(self) -> None:
        """Free the gradients that are not in fabric memory."""
        self._loose.clear()
        self._paused.clear()

    def _hook(self, entry: int, param: Tensor) -> None:
        grad, arrivals = param.grad, self._current.get()
        if grad is None or arrivals is None:
            return
        param.grad = None
        if grad.is_sparse:
            raise JobRefused(
                f"the gradient of {self._layout.entries[entry].name} is sparse, samestep adds dense ones: "
                "build its layer with sparse=False"
            )
        deferred = DEFERRED.get()
        if deferred is not None and deferred.has(param):
            raise JobRefused(
                f"{self._layout.entries[entry].name} is used by its Linear and by other code of its stage, and its "
                'gradient cannot be made in two parts: use order = "1f1b", or call the layer itself in both places'
            )
        arrivals.present[entry] = 1
        self.present[entry] = 1
        if arrivals.may_wait and self._turn[entry] != arrivals.shard:
            arrivals.waiting[entry] = grad
        else:
            self._fold(entry, grad, arrivals)

    def _fold(self, entry: int, grad: Tensor, arrivals: _Arrivals) -> None:
        if self._turn[entry] != arrivals.shard:
            raise JobRefused(
                f"parameter {self._layout.entries[entry].name} got a gradient from shard {arrivals.shard} "
                f"before shard {self._turn[entry]} was done: shards that are computed together must use the same "
                "parameters; make forward use all of them, leave layers whole, or set sync_batchnorm=False"
            )
        self._turn[entry] += 1
        if self.when_arrived is not None:
            self.when_arrived(arrivals.shard, entry, grad)
        edges = arrivals.edges
        node = None if edges is None else edges.stored(arrivals.shard, entry, grad)
        if not arrivals.fold.into:
            self._store(arrivals.fold.slot, entry, grad)
        for slot in arrivals.fold.into:
            grad = self._at(slot, entry).add_(grad)
            if edges is not None and node is not None:
                node = edges.added(node, entry, grad)
        if self.when_folded is not None and self._turn[entry] == self._ends[entry]:
            self.when_folded(entry)

    def _store(self, slot: int, entry: int, grad: Tensor) -> None:
        if slot < len(self._fixed):
            place = self._fixed[slot][entry]
            if grad.data_ptr() != place.data_ptr():
                place.copy_(grad)
        else:
            self._loose.setdefault(slot, [None] * len(self._turn))[entry] = grad

    def _at(self, slot: int, entry: int) -> Tensor:
        if slot < len(self._fixed):
            return self._fixed[slot][entry]
        return cast(Tensor, self._loose[slot][entry])
