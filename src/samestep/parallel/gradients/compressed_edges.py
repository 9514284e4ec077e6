"""A codec on the edges of the reduction tree, and the state of the edges that this worker crosses.

A node's sum crosses the edge to its parent once: in the fold of a worker that has both children, when a
host joins its sums, or when the last ones are added up. The sum that is added there is the decoded one,
sent or not. So the numbers do not depend on who crosses.

State is kept for steps with as many shards as the numerics say. A short last batch has another tree;
its edges are crossed without memory, which leaves nothing behind that could depend on who did it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from samestep.codec.codec import State
from samestep.codec.edge_codec import EdgeCodec
from samestep.numerics.reduction_tree import Node, promoted
from samestep.parallel.gradients.layout import Layout, Piece, storage_order


class Stored(Protocol):
    """State in a checkpoint."""

    def read(self, name: str, start: int, stop: int, *, whole: bool) -> State:
        """The state of an edge: elements start..stop-1, or the whole."""
        ...

    def parts(self, *, whole: bool) -> Iterator[tuple[str, Tensor, int, bool]]:
        """All state, as `CompressedEdges.parts`."""
        ...


TYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True, order=True)
class Edge:
    """From a node to its parent, for a piece of an entry."""

    node: Node
    entry: int
    start: int
    stop: int


class CompressedEdges:
    """The edges that a codec applies to, and the state of those that this worker has crossed.

    num_shards: of a step with a full batch.
    """

    def __init__(self, codec: EdgeCodec, layout: Layout, num_shards: int) -> None:
        self._codec, self._layout, self._num_shards = codec, layout, num_shards
        self.states: dict[Edge, State] = {}
        self.before: Stored | None = None  # a checkpoint's, from which an edge's state is taken when it is crossed
        self._all_crossed = False

    def begin_step(self, num_shards: int) -> None:
        """Begin a step. After one with a full batch, every edge's state is with the worker that has crossed it."""
        self._all_crossed |= num_shards == self._num_shards

    @property
    def wants_whole(self) -> bool:
        """Whether the codec needs whole parameters."""
        return self._codec.codec.grain is None

    def applies_to(self, node: Node, entry: int, num_shards: int) -> bool:
        """node: promoted; the root has no parent."""
        is_root = node.first_shard() == 0 and 1 << node.level >= num_shards
        dtype = self._layout.entries[entry].param.dtype
        return not is_root and self._codec.applies_to(node.level) and dtype in TYPES

    def cross(self, node: Node, piece: Piece, flat: Tensor, num_shards: int) -> list[Tensor]:
        """Replace `flat`, a piece's sum in storage order, by the decoded one for the parent. Returns it packed."""
        state: State = {}
        if num_shards == self._num_shards:
            state = self._state_of(Edge(node, piece.entry, piece.start, piece.stop))
        packed = self._codec.codec.encode(self._shaped(piece, flat), state)
        self.unpack(packed, piece, flat)
        return packed

    def unpack(self, packed: list[Tensor], piece: Piece, flat: Tensor) -> None:
        """Fill `flat` with the decoded values."""
        shape = self._shaped(piece, flat).shape
        self._shaped(piece, flat).copy_(self._codec.codec.decode(packed, shape, flat.dtype))

    def packed_like(self, piece: Piece) -> list[Tensor]:
        """Tensors of the sizes and types into which a piece is packed."""
        zeros = self._layout.entries[piece.entry].param.new_zeros(piece.stop - piece.start, requires_grad=False)
        return [torch.empty_like(tensor) for tensor in self._codec.codec.encode(self._shaped(piece, zeros), {})]

    def _state_of(self, edge: Edge) -> State:
        if edge not in self.states:
            self.states[edge] = {}
            if self.before is not None:
                stored = self.before.read(self._name(edge), edge.start, edge.stop, whole=self.wants_whole)
                device = self._layout.entries[edge.entry].param.device
                self.states[edge] = {name: value.to(device) for name, value in stored.items()}
        return self.states[edge]

    def _name(self, edge: Edge) -> str:
        return f"edge/{edge.node.level}.{edge.node.index}/{self._layout.entries[edge.entry].name}"

    def parts(self) -> Iterator[tuple[str, Tensor, int, bool]]:
        """(label, value, start, whether it is whole) of all state."""
        if self.before is not None and not self._all_crossed:
            yield from self.before.parts(whole=self.wants_whole)
        for edge, state in sorted(self.states.items()):
            for key, value in sorted(state.items()):
                yield f"{self._name(edge)}/{key}", value, 0 if self.wants_whole else edge.start, self.wants_whole

    def _shaped(self, piece: Piece, flat: Tensor) -> Tensor:
        """A piece's values in the shape that the codec takes: 1-D, or that of the parameter."""
        if not self.wants_whole:
            return flat
        param = self._layout.entries[piece.entry].param
        return flat.as_strided(param.shape, param.stride(), flat.storage_offset())


@dataclass(frozen=True)
class CompressedFold:
    """The edges inside one worker's fold of its shards: all but those of the nodes that it leaves."""

    edges: CompressedEdges
    left: tuple[Node, ...]
    num_shards: int

    def stored(self, shard: int, entry: int, tensor: Tensor) -> Node:
        """A shard's gradient crosses its edge, in place. Returns its node."""
        return self._reached(promoted(Node(0, shard), self.num_shards), entry, tensor)

    def added(self, right: Node, entry: int, tensor: Tensor) -> Node:
        """The sum with a right child crosses its own edge, in place. Returns its node."""
        return self._reached(promoted(Node(right.level + 1, right.index >> 1), self.num_shards), entry, tensor)

    def _reached(self, node: Node, entry: int, tensor: Tensor) -> Node:
        if node not in self.left and self.edges.applies_to(node, entry, self.num_shards):
            self.edges.cross(node, Piece(entry, 0, tensor.numel()), storage_order(tensor), self.num_shards)
        return node
