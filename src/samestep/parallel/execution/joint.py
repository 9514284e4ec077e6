"""A set of shards in a sliced region: rows to the slices' holders, outputs back to the rows' workers.

    writers    hold rows: shards of the set          holders   hold slices
    forward    writer -- its rows of x, all columns --> every holder
               holder -- y of its slices, the writer's rows --> every writer      (column: side by side)
               holder -- its partial sums over slices, the writer's rows -->      (row: added up, in the tree)
    backward   writer -- its rows of dy, the holder's columns (row: all) --> every holder
               holder -- its partial sums of dx over slices, the writer's rows --> every writer

A worker without rows still computes its slices, one without slices still brings its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.errors import JobRefused
from samestep.numerics.reduction_tree import fold_plan, folded, local_plan
from samestep.parallel.cutting.slices import RegionCell, SlicedRegion
from samestep.transport.transport import Transport


@dataclass(frozen=True)
class JoinGroup:
    """Who brings rows of a set, and who has slices of a region."""

    rank: int
    group: tuple[int, ...]
    writers: tuple[int, ...]
    slices: Mapping[int, range]  # of every holder, in order
    own_shards: range

    @property
    def num_slices(self) -> int:
        return sum(map(len, self.slices.values()))

    @property
    def own_slices(self) -> range:
        return self.slices.get(self.rank, range(0))


def meeting_of(
    rank: int, group: Sequence[int], counts: Sequence[int], held: Mapping[int, range], shards: range
) -> JoinGroup:
    """counts: slices of each worker of `group`; held: the shards of each in this step."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    shares = {r: range(max(held[r].start, shards.start), min(held[r].stop, shards.stop)) for r in group}
    return JoinGroup(
        rank,
        tuple(group),
        tuple(r for r in group if shares[r]),
        {r: range(a, a + n) for r, a, n in zip(group, starts, counts, strict=True) if n},
        shares[rank],
    )


class Joint:
    """One worker's side of it, from forward to backward."""

    def __init__(self, sliced: SlicedRegion, meeting: JoinGroup, transport: Transport) -> None:
        self._sliced, self.meeting, self._transport = sliced, meeting, transport
        self._shapes: list[torch.Size] = []  # of each own shard's input
        self._made: list[Tensor] = []  # each own shard's output, on the meta device
        self._device = torch.device("cpu")
        self._own_counts: list[int] = []  # rows of each own shard
        self._counts: list[int] = []  # rows of each writer, for holders
        self._cell: RegionCell | None = None
        self._needs_grad = False

    def forward(self, inputs: Sequence[Tensor], stream: tuple[int | str, ...], *, needs_grad: bool) -> list[Tensor]:
        """From each own shard's input to its output."""
        column, dim = self._sliced.column, self._sliced.column.channel_dim
        rows = [column.rows_of(x) for x in inputs]
        self._check_shapes(rows)
        self._shapes, self._own_counts = [x.shape for x in inputs], [len(part) for part in rows]
        self._needs_grad = needs_grad
        mine = torch.cat(rows) if rows else None
        blocks = self._to_holders({} if mine is None else dict.fromkeys(self.meeting.slices, mine))
        outputs: list[Tensor] = []
        if blocks:
            self._check_shapes(blocks)
            self._counts = [len(block) for block in blocks]
            self._cell, outputs = self._sliced.forward(torch.cat(blocks), stream, needs_grad=needs_grad)
        if self._sliced.region.is_summed:
            found = self._summed(outputs)
        else:
            wide = [torch.cat(outputs, dim).contiguous()] if outputs else []
            parts = self._to_writers(wide, dict.fromkeys(self.meeting.slices, 1))
            found = torch.cat(parts, dim).contiguous() if parts else None
        if found is None:
            return []
        made = [column.shaped(y, s) for y, s in zip(torch.split(found, self._own_counts), self._shapes, strict=True)]
        self._made, self._device = [y.to("meta") for y in made], found.device
        return made

    def backward(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """From the gradient of each own shard's output to that of its input; nothing when it needs none.

        Raises JobRefused where none of the own shards has a gradient: without a cut the layer has none, here zeros.
        """
        if grads and all(g is None for g in grads):
            raise JobRefused(
                f"nothing in the loss depends on what layer {self._sliced.column.name} makes, so without slices its "
                "weights have no gradient, and slices would give zeros: leave it whole"
            )
        rows = [self._rows(made if g is None else g, zero=g is None) for g, made in zip(grads, self._made, strict=True)]
        mine = torch.cat(rows) if rows else None
        blocks = self._to_holders({} if mine is None else self._columns_of_holders(mine))
        partial: list[Tensor] = []
        if blocks:
            assert self._cell is not None, "forward comes before backward"
            g = torch.cat(blocks)
            partial = [x for x in self._cell.backward(self._of_slices(g)) if x is not None]
        if not self._needs_grad:
            return []
        dx = self._summed(partial)
        if dx is None:
            return []
        parts = torch.split(dx, self._own_counts)
        return [self._sliced.column.shaped_input(part, s) for part, s in zip(parts, self._shapes, strict=True)]

    def _check_shapes(self, blocks: Sequence[Tensor]) -> None:
        """Raises JobRefused when shards differ in more than their rows."""
        shapes = sorted({tuple(block.shape[1:]) for block in blocks})
        if len(shapes) > 1:
            raise JobRefused(
                f"shards bring inputs of different shapes to {self._sliced.column.name}, (rows, {str(shapes[0])[1:]} "
                f"and (rows, {str(shapes[1])[1:]}: a sliced layer takes the rows of all shards at once. Leave it "
                "whole, pad to one shape, or put the rows first"
            )

    def _rows(self, grad: Tensor, *, zero: bool) -> Tensor:
        grad = torch.zeros(grad.shape, dtype=grad.dtype, device=self._device) if zero else grad
        return self._sliced.column.rows_of_output(grad)

    def _columns_of_holders(self, grad: Tensor) -> dict[int, Tensor]:
        if self._sliced.region.is_summed:
            return dict.fromkeys(self.meeting.slices, grad)
        widths = [sum(self._sliced.sizes[k] for k in own) for own in self.meeting.slices.values()]
        parts = torch.split(grad, widths, self._sliced.column.channel_dim)
        return {holder: part.contiguous() for holder, part in zip(self.meeting.slices, parts, strict=True)}

    def _of_slices(self, grad: Tensor) -> list[Tensor]:
        """The gradient of each own slice's output."""
        own = self.meeting.own_slices
        if self._sliced.region.is_summed:
            return [grad] * len(own)
        parts = torch.split(grad, [self._sliced.sizes[k] for k in own], self._sliced.column.channel_dim)
        return [part.contiguous() for part in parts]

    def _summed(self, summands: Sequence[Tensor]) -> Tensor | None:
        """The sum over all slices in the tree's order, for this worker's rows; None without rows."""
        total, slices = self.meeting.num_slices, self.meeting.slices
        nodes = partial_sums(summands, self.meeting.own_slices, total) if summands else []
        arrived = self._to_writers(nodes, {holder: len(local_plan(own, total).left) for holder, own in slices.items()})
        if not arrived:
            return None
        return arrived[0].clone() if len(arrived) == 1 else join_sums(arrived, list(slices.values()), total)

    def _to_holders(self, gives: Mapping[int, Tensor]) -> list[Tensor]:
        """Every writer's block, in shard order, for a holder."""
        wants = dict.fromkeys(self.meeting.writers, 1) if self.meeting.own_slices else {}
        return self._swap({holder: [tensor] for holder, tensor in gives.items()}, wants)

    def _to_writers(self, tensors: Sequence[Tensor], per_holder: Mapping[int, int]) -> list[Tensor]:
        """Every holder's tensors, in slice order, cut to the rows of a writer."""
        blocks = [torch.split(tensor, self._counts) for tensor in tensors]  # views of each writer's rows
        gives = {writer: [parts[i] for parts in blocks] for i, writer in enumerate(self.meeting.writers)}
        return self._swap(gives, per_holder if self.meeting.own_shards else {})

    def _swap(self, gives: Mapping[int, Sequence[Tensor]], wants: Mapping[int, int]) -> list[Tensor]:
        """Give tensors to workers and take as many as wanted from others; one's own come along."""
        rank = self.meeting.rank
        outgoing = [(peer, tensor) for peer, tensors in gives.items() if peer != rank for tensor in tensors]
        sources = [peer for peer, count in wants.items() if peer != rank for _ in range(count)]
        arrived = iter(self._transport.move(self.meeting.group, outgoing, sources))
        found: list[Tensor] = []
        for peer, count in wants.items():
            found += gives[peer] if peer == rank else [next(arrived) for _ in range(count)]
        return found


def partial_sums(values: Sequence[Tensor], own: range, total: int) -> list[Tensor]:
    """The sums that the holder of `own` of `total` leaves can make by itself: one per node that remains."""
    return folded(values, local_plan(own, total))


def join_sums(values: Sequence[Tensor], holders: Sequence[range], total: int) -> Tensor:
    """The root, from every holder's `partial_sums`, in order."""
    nodes = tuple(node for own in holders for node in local_plan(own, total).left)
    return folded(values, fold_plan(nodes, total))[0]
