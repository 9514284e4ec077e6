"""The layout of parameters in flat memory, and their division into pieces with one owner each.

    flat memory   | weight 0 ........ |pad| bias 0 |pad| weight 1 ............... | ...
                  ^0                  ^ multiples of 64 elements
    owner         |    worker 0            |  worker 1 ...
                                           ^ at a parameter's start, or at a multiple of
                                             32,768 elements of the parameter's own index

Fused optimizers change bits when a cut is not aligned to their vectors, hence the alignment; the
cuts of a parameter do not depend on what lies before it, hence "its own index".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

ALIGN = 64  # elements between which a parameter may start
CHUNK = 32_768  # elements between which a parameter may be cut


@dataclass(frozen=True)
class Entry:
    """One registered name of a parameter. Tied names share the values, not the gradient."""

    name: str
    param: nn.Parameter
    start: int  # byte of flat memory at which its gradient begins
    tied_to: int | None  # the entry that holds the values, when this name is not the first
    whole: nn.Parameter  # the model's parameter; another one than `param` for a slice of it
    along: tuple[int, int, int] | None = None  # of a slice: dim, start and stop in the whole

    @property
    def nbytes(self) -> int:
        return self.param.numel() * self.param.element_size()


@dataclass(frozen=True)
class Piece:
    """Elements start..stop-1, in storage order, of an entry that holds values."""

    entry: int
    start: int
    stop: int


class Layout:
    """The managed parameters of a model, in registration order."""

    def __init__(
        self,
        names: Sequence[tuple[str, nn.Parameter, int | None]],
        slices: Mapping[int, tuple[nn.Parameter, tuple[int, int, int]]] | None = None,
    ) -> None:
        """slices: by id of a slice's leaf, the model's parameter that it is a slice of, and which."""
        self.entries: list[Entry] = []
        at = 0
        for name, param, tied_to in names:
            step = ALIGN * param.element_size()
            at = -(-at // step) * step
            self.entries.append(Entry(name, param, at, tied_to, *(slices or {}).get(id(param), (param, None))))
            at += self.entries[-1].nbytes
        self.nbytes = at
        self.names = [[i] for i in range(len(self.entries))]  # the entries of all names of an entry's parameter
        for i, other in enumerate(self.entries):
            if other.tied_to is not None:
                self.names[other.tied_to].append(i)

    def owners(self) -> Iterator[tuple[int, Entry]]:
        """The entries that hold values."""
        return ((i, entry) for i, entry in enumerate(self.entries) if entry.tied_to is None)

    def aliases(self, entry: int) -> list[int]:
        """Further registered names of an entry's parameter, in order of registration."""
        return self.names[entry][1:]

    def view(self, memory: Tensor, entry: int) -> Tensor:
        """The part of `memory` that belongs to an entry, shaped and strided as its parameter."""
        e = self.entries[entry]
        return self.flat(memory, entry).as_strided(e.param.shape, e.param.stride())

    def flat(self, memory: Tensor, entry: int) -> Tensor:
        """The same part in storage order, 1-D."""
        e = self.entries[entry]
        return memory[e.start : e.start + e.nbytes].view(e.param.dtype)


class ValueLayout(Layout):
    """The layout of the values alone: a parameter under several names is summed once."""

    def __init__(self, layout: Layout) -> None:
        self.entries, self.nbytes = layout.entries, layout.nbytes
        self.names = [[i] for i in range(len(self.entries))]


def untie(model: nn.Module, managed: Sequence[nn.Parameter]) -> list[tuple[str, nn.Parameter, int | None]]:
    """Give every further registered name of a tied parameter a leaf of its own, with the same values.

    A tied weight is reduced per name over the tree and then summed in name order, so that the sum
    does not depend on which worker holds which of its uses. Returns (name, leaf, first entry) in
    registration order, for the parameters in `managed`.
    """
    wanted = {id(param) for param in managed}
    first: dict[int, int] = {}
    names: list[tuple[str, nn.Parameter, int | None]] = []
    for prefix, module in model.named_modules():
        for local, param in list(module._parameters.items()):
            if param is None or id(param) not in wanted:
                continue
            name = f"{prefix}.{local}" if prefix else local
            if id(param) in first:
                leaf = nn.Parameter(param.data)
                setattr(module, local, leaf)  # not _parameters: an LSTM keeps a list of its own
                names.append((name, leaf, first[id(param)]))
            else:
                first[id(param)] = len(names)
                names.append((name, param, None))
    return names


def storage_order(tensor: Tensor) -> Tensor:
    """A dense tensor as 1-D, in the order in which its elements lie in memory. Shares memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself when its elements fill their storage without gaps, else a contiguous copy."""
    expected = 1
    for n, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda d: (d[1], d[0])):
        if n != 1 and stride != expected:
            return tensor.contiguous()
        expected *= n
    return tensor


def share_pieces(
    layout: Layout, workers: int, *, whole: bool, entries: Iterable[int] | None = None
) -> list[list[Piece]]:
    """Cut the managed parameters into one contiguous share per worker, as equal as the cuts allow.

    `whole` forbids cuts inside a parameter (optimizers not known to be elementwise); `entries` limits it to some.
    """
    wanted_entries = None if entries is None else set(entries)
    sizes = {i: e.param.numel() for i, e in layout.owners() if wanted_entries is None or i in wanted_entries}
    total = sum(sizes.values())
    wanted = [total * w // workers for w in range(1, workers)]
    cuts = [(0, 0)] + [_nearest_cut(sizes, goal, whole) for goal in wanted]
    cuts.append((max(sizes, default=0) + 1, 0))
    return [list(_between(sizes, low, high)) for low, high in pairwise(cuts)]


def _nearest_cut(sizes: dict[int, int], goal: int, whole: bool) -> tuple[int, int]:
    """The allowed cut (entry, element) nearest to element `goal` of all."""
    before = 0
    for entry, size in sizes.items():
        if before + size > goal:
            inside = goal - before
            grid = size if whole else CHUNK
            cut = min((inside // grid * grid, min(size, -(-inside // grid) * grid)), key=lambda c: abs(c - inside))
            return entry, cut
        before += size
    return max(sizes, default=0) + 1, 0


def _between(sizes: dict[int, int], low: tuple[int, int], high: tuple[int, int]) -> Iterator[Piece]:
    for entry, size in sizes.items():
        start = max(0, low[1] if entry == low[0] else (0 if entry > low[0] else size))
        stop = min(size, high[1] if entry == high[0] else (size if entry < high[0] else 0))
        if start < stop:
            yield Piece(entry, start, stop)


def grid_chunks(flat: Tensor, start: int = 0) -> list[Tensor]:
    """Consecutive runs of at most 32,768 elements; `start` must lie on that grid."""
    assert start % CHUNK == 0, "pieces begin on the chunk grid"
    return list(torch.split(flat, CHUNK)) if flat.numel() else []
