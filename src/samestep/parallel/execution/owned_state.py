"""The part of a run's state that one worker owns, in pieces with labels: what a digest and a checkpoint are made from.

parameter/fc.weight        elements start.. of a parameter, from every owner
elementwise/fc.weight/exp_avg, tensor/..., int/..., float/...     the optimizer's state
edge/...                   memory of the compressed edges that this worker has crossed
buffer/bn.running_mean     whole, the same on all workers
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.gradients.compressed_edges import CompressedEdges, Stored
from samestep.parallel.gradients.layout import Layout, storage_order
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.parallel.gradients.stretches import is_first
from samestep.transport.transport import Transport


@dataclass(frozen=True)
class StatePiece:
    """A piece of state that this worker holds: elements start.. of `label`, or the whole of it."""

    label: str
    tensor: Tensor
    start: int = 0
    whole: bool = True


@dataclass(frozen=True)
class StoredPiece:
    """A piece of state in a checkpoint: elements start.. of `label`. Nothing of it has been read yet."""

    label: str
    start: int
    read: Callable[[], Tensor]
    lazily: Callable[[], Any]  # its elements are read when it is sliced


class WorkerState(Protocol):
    """One worker's part of a run's state."""

    def pieces(self, *, once: bool = False) -> Iterator[StatePiece]:
        """The pieces that this worker owns; those that several hosts own come from each, or `once` from the first."""
        ...

    def restore(self, stored: StoredPiece) -> None:
        """Take what is this worker's from a piece of a checkpoint."""
        ...

    def finish(self, edges: Stored) -> None:
        """End restoring, when every piece has been seen. edges: the checkpoint's memory of compressed edges."""
        ...


@dataclass
class OwnedState:
    """The state of a worker that owns pieces of one model."""

    layout: Layout
    ownership: Sequence[Ownership]
    update: ShardedUpdate
    buffers: Buffers
    edges: CompressedEdges | None
    transport: Transport

    def __post_init__(self) -> None:
        self._own = {self.layout.entries[piece.entry].name: piece for piece, _ in self.update.targets}
        self._collected: dict[tuple[str, str], Tensor] = {}  # of the optimizer's state, while it is restored

    def pieces(self, *, once: bool = False) -> Iterator[StatePiece]:
        hosts, rank = self.transport.hosts, self.transport.rank
        own = [p for p, _ in self.update.targets if not once or is_first(self.ownership[p.entry], hosts, rank)]
        for piece in own:
            entry = self.layout.entries[piece.entry]
            flat = storage_order(entry.param.detach())[piece.start : piece.stop]
            yield StatePiece(f"parameter/{entry.name}", flat, piece.start, whole=False)
        for piece, kind, key, value in self.update.state.pieces():
            if piece in own:
                label, is_whole = f"{kind}/{self.layout.entries[piece.entry].name}/{key}", kind != "elementwise"
                yield StatePiece(label, value, 0 if is_whole else piece.start, is_whole)
        for under_way in self.under_way():  # before the edges, which what is under way may cross
            if not once or hosts[rank] == hosts[0] or under_way.whole:  # all hosts have the same gradients under way
                yield under_way
        for label, value, start, is_whole in self.edges.parts() if self.edges is not None else ():
            yield StatePiece(label, value, start, is_whole)
        for name, buffer in zip(self.buffers.names, self.buffers.values, strict=True):
            yield StatePiece(f"buffer/{name}", buffer)

    def under_way(self) -> Iterator[StatePiece]:
        """Gradients that no update has used yet. All workers must call it."""
        return iter(())

    def restore(self, stored: StoredPiece) -> None:
        kind, _, name = stored.label.partition("/")
        if kind == "parameter" and (piece := self._own.get(name)):
            target = storage_order(self.layout.entries[piece.entry].param.data)
            fill(target[piece.start : piece.stop], piece.start, stored)
        elif kind == "elementwise" and (piece := self._own.get(name.rpartition("/")[0])):
            if (kind, name) not in self._collected:
                self._collected[kind, name] = stored.lazily()[0:0].new_empty(piece.stop - piece.start)
            fill(self._collected[kind, name], piece.start, stored)
        elif kind in ("tensor", "int", "float") and name.rpartition("/")[0] in self._own:
            self._collected[kind, name] = stored.read()
        elif kind == "buffer":
            i = self.buffers.names.index(name)
            self.buffers.set(i, stored.read().to(self.buffers.values[i].device))

    def finish(self, edges: Stored) -> None:
        for (kind, name), value in self._collected.items():
            parameter, _, key = name.rpartition("/")
            self.update.state.restore(self._own[parameter], kind, key, value)
        if self.edges is not None:
            self.edges.before = edges


def fill(target: Tensor, first: int, stored: StoredPiece) -> None:
    """Copy into `target`, elements first.. of a parameter, those that are stored."""
    elements, start = stored.lazily(), stored.start
    low, high = max(start, first), min(start + elements.get_shape()[0], first + len(target))
    if low < high:
        target[low - first : high - first].copy_(elements[low - start : high - start])
