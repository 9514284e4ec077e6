"""Memory at rest: the state that one worker owns must not change between an update and the next one.

    update t | keep | forward and backward of step t+1 | check | update t+1

A worker answers for its share of its host's copy of the parameters, its own optimizer state, its own buffers and its
own small frozen parameters. On one host it keeps what it has updated before it lets the others go on, so nobody writes
there unseen; on several it waits first until its host's copy is whole. A change in between is a flipped bit, or a
write that nobody should have made, in that memory and in no other: no replica is needed to tell who is wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from samestep.audit.fingerprint import NARROW, ROUND, WIDE, WORD, blocks, odd
from samestep.parallel.execution.executor import Executor
from samestep.parallel.gradients.layout import Piece, dense, share_pieces, storage_order
from samestep.state import snapshot

LARGE = 1 << 20  # bytes from which on a tensor is looked at by itself
GRID = NARROW * WORD  # bytes: no block of small tensors holds parts of two


@dataclass(frozen=True)
class WatchedTensor:
    """Elements start.. of a tensor, 1-D and contiguous."""

    name: str
    flat: Tensor
    start: int = 0

    @property
    def nbytes(self) -> int:
        return self.flat.numel() * self.flat.element_size()


@dataclass(frozen=True)
class MemoryRegion:
    """Memory that is looked at in one go: one large tensor, or many small ones, each from a new block on."""

    tensors: tuple[WatchedTensor, ...]
    fillers: tuple[Tensor, ...]  # zeros after each of many

    @cached_property
    def views(self) -> list[Tensor]:
        pairs = zip(self.tensors, self.fillers, strict=True)
        return [part for named, zeros in pairs for part in (named.flat.view(torch.uint8), zeros) if len(part)]

    def blocks(self) -> Tensor:
        return blocks(self.views[0] if len(self.tensors) == 1 else torch.cat(self.views), self.width)

    @property
    def width(self) -> int:
        return WIDE if len(self.tensors) == 1 and self.tensors[0].nbytes >= LARGE else NARROW

    def place(self, block: int) -> tuple[WatchedTensor, int]:
        """The tensor that a block belongs to, and the byte of it at which the block begins."""
        at = block * self.width * WORD
        for named, zeros in zip(self.tensors, self.fillers, strict=True):
            if at < named.nbytes:
                return named, at
            at -= named.nbytes + len(zeros)
        raise AssertionError("every block has a tensor")


def regions(tensors: Sequence[WatchedTensor]) -> list[MemoryRegion]:
    """Large tensors by themselves, small ones together by their device."""
    found, small = list[MemoryRegion](), dict[torch.device, list[WatchedTensor]]()
    for named in tensors:
        if named.nbytes >= LARGE:
            found.append(MemoryRegion((named,), (named.flat.new_zeros(0, dtype=torch.uint8),)))
        elif named.nbytes:
            small.setdefault(named.flat.device, []).append(named)
    for device, together in small.items():
        zeros = torch.zeros(GRID, dtype=torch.uint8, device=device)
        found.append(MemoryRegion(tuple(together), tuple(zeros[: -named.nbytes % GRID] for named in together)))
    return found


@dataclass(frozen=True)
class Change:
    """bit, element: of the one bit that is another one, where that can be told."""

    name: str
    first: int  # elements between which the change is
    last: int
    element: int | None = None
    bit: int | None = None

    def __str__(self) -> str:
        if self.element is None:
            return f"{self.name} (between elements {self.first} and {self.last})"
        return f"{self.name} (bit {self.bit} of element {self.element})"


class MemoryWatch:
    """Watches one worker's memory. Between `keep` and `check`, nothing may change."""

    def __init__(self, executor: Executor, parameters: Tensor) -> None:
        """parameters: the memory of this host's copy."""
        self.executor, self.parameters = executor, parameters
        self.shares = list(own_share(executor))
        self.small_frozen = [part for part in frozen_parts(executor) if part.nbytes < LARGE]  # audits see all of them
        self.step: int | None = None  # after which `keep` was called
        self._lasting: list[MemoryRegion] = []  # of what updates change in place
        self._lasting_of: list[int] = []
        self._regions: list[MemoryRegion] = []
        self._kept: list[Tensor] = []

    def keep(self, step: int) -> None:
        state = self.executor.update.optimizer.state
        ids = [id(v) for _, target in self.executor.update.targets for v in state.get(target, {}).values()]
        if ids != self._lasting_of or not self._lasting:
            self._lasting = regions([*self.parameter_parts(), *state_parts(self.executor), *self.small_frozen])
            self._lasting_of = ids
        self._regions = [*self._lasting, *regions(list(buffer_parts(self.executor)))]
        self._kept = [region.blocks() for region in self._regions]
        self.step = step

    def forget(self) -> None:
        self._regions, self._kept, self.step = [], [], None

    def forget_all(self) -> None:
        """Forget the tensors as well: they may have been replaced."""
        self.forget()
        self._lasting, self._lasting_of = [], []

    def check(self) -> Change | None:
        """The first change since `keep`, or None."""
        for region, kept in zip(self._regions, self._kept, strict=True):
            found = region.blocks()
            if not torch.equal(found, kept):
                return change(region, kept, found)
        return None

    def parameter_parts(self) -> Iterator[WatchedTensor]:
        layout = self.executor.layout
        for piece in self.shares:
            flat = layout.flat(self.parameters, piece.entry)[piece.start : piece.stop]
            yield WatchedTensor(f"parameter {layout.entries[piece.entry].name}", flat, piece.start)


def own_share(executor: Executor) -> Sequence[Piece]:
    """This worker's share of the parameters that its host's workers compute with or update: on one host, what it
    updates itself."""
    layout, homes, transport = executor.layout, executor.ownership, executor.transport
    if len(set(transport.hosts)) == 1:
        return [piece for piece, _ in executor.update.targets]
    near = [r for r, host in enumerate(transport.hosts) if host == transport.hosts[transport.rank]]
    used = [
        i for i, _ in layout.owners()
        if any(set(near) & set(homes[name].workers) for name in (i, *layout.aliases(i)))
    ]  # fmt: skip
    return share_pieces(layout, len(near), whole=False, entries=used)[near.index(transport.rank)] if used else []


def state_parts(executor: Executor) -> Iterator[WatchedTensor]:
    """This worker's optimizer state, but for plain numbers."""
    for piece, kind, key, value in executor.update.state.pieces():
        if kind in ("elementwise", "tensor"):
            name = f"optimizer state {key} of {executor.layout.entries[piece.entry].name}"
            yield WatchedTensor(name, at_rest(value), piece.start if kind == "elementwise" else 0)


def frozen_parts(executor: Executor) -> Iterator[WatchedTensor]:
    for name, constant in snapshot.constants(executor):
        yield WatchedTensor(f"frozen parameter {name}", at_rest(constant))


def buffer_parts(executor: Executor) -> Iterator[WatchedTensor]:
    for name, value in zip(executor.buffers.names, executor.buffers.values, strict=True):
        yield WatchedTensor(f"buffer {name}", at_rest(value))


def at_rest(tensor: Tensor) -> Tensor:
    """The memory of a tensor itself, 1-D, in the order in which it lies there: a copy would never change. (With gaps
    between its elements, which may be others', it is a copy.)"""
    found = tensor.detach()
    for dim in reversed([dim for dim, stride in enumerate(found.stride()) if stride == 0]):
        found = found.select(dim, 0) if found.shape[dim] else found
    return storage_order(dense(found))


def change(region: MemoryRegion, kept: Tensor, found: Tensor) -> Change:
    """The first block that differs; where one bit explains it, which one."""
    block = int((kept != found).nonzero()[0])
    named, at = region.place(block)
    size = named.flat.element_size()
    first = at // size
    last = min(first + region.width * WORD // size, named.flat.numel()) - 1
    bits = single_bits((int(found[block]) - int(kept[block])) % ROUND, region.width)
    places = {(at + word * WORD + bit // 8) // size: (bit + word * 64) % (size * 8) for word, bit in bits}
    if len(places) == 1:
        ((element, bit),) = places.items()
        return Change(named.name, named.start + first, named.start + last, named.start + element, bit)
    return Change(named.name, named.start + first, named.start + last)


def single_bits(delta: int, width: int) -> list[tuple[int, int]]:
    """Words and bits whose flip changes a block's fingerprint so. High bits say little about the word."""
    factors = [int(factor) % ROUND for factor in odd(width, torch.device("cpu"))]
    return [
        (word, bit)
        for word, factor in enumerate(factors)
        for bit in range(64)
        if (factor << bit) % ROUND in (delta, ROUND - delta)
    ]
