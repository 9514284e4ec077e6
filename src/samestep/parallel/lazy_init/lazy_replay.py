"""Lazy initialization: a worker's parts of the initial model, with the values that they have on one worker.

The model's factory runs once and computes nothing large: tensors get addresses without memory, and
every operation on them is recorded. The list is then run for real, in its order:

    weight = empty(8, 8)          owned: written in its destination
    uniform_(weight)              random, overwritten below: drawn into a temporary, to advance the generator
    normal_(weight)               random: drawn into the destination, or a temporary when not owned
    zero_(bias)                   when not owned: skipped

Small tensors of known values (`linspace(0, 0.1, 12).tolist()`) are computed while recording too. When the
factory reads a value that comes from the generator, or one of a large tensor, the list so far is run for
it: every draw once, however many values are read.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from samestep.parallel.lazy_init.address_space import memory_of
from samestep.parallel.lazy_init.draws import Draw
from samestep.parallel.lazy_init.lazy_record import LazyRecorder
from samestep.parallel.lazy_init.operations import Operation, TensorView
from samestep.system import heap

ELEMENT_BY_ELEMENT = {torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default}
"""Random operations that leave the generator in the same state if they are drawn in pieces."""
PIECE = 1 << 18  # elements

Window = tuple[int, int, int]  # dim, start, stop
Wanted = Callable[[str], Tensor | Sequence[tuple[Window, Tensor]] | None]


@dataclass
class Target:
    """Memory that the values of a parameter, or of a slice of one, are written to."""

    part: TensorView
    place: Tensor

    def is_whole_storage(self, nbytes: int) -> bool:
        """True if the destination can stand for the parameter's storage."""
        place, part = self.place, self.part
        same = (place.dtype, place.shape, place.stride()) == (part.dtype, part.shape, part.stride)
        return same and part.offset == 0 and part.is_dense and part.numel * part.dtype.itemsize == nbytes


@dataclass
class LazyModel:
    """A model without memory for its parameters, and the list of operations that computes them."""

    model: nn.Module
    _recorder: LazyRecorder
    _parts: Mapping[str, TensorView]  # by the first name of every parameter
    _kept: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def replay(self, wanted: Wanted) -> None:
        """Compute the parameters that `wanted` has memory for, with the generators as `record_factory` found them.

        wanted: memory for the whole of a parameter or for slices of it, by its first registered name.
        Buffers and other tensors that the model keeps are computed too.
        """
        targets: dict[int, list[Target]] = {}
        for name, part in self._parts.items():
            for window, place in _places(wanted(name)):
                piece = part if window is None else narrowed(part, *window)
                assert place.shape == piece.shape, f"{name} has shape {tuple(piece.shape)}, its memory {place.shape}"
                targets.setdefault(piece.storage, []).append(Target(piece, place.detach()))
        _own_memory(self.model, self._recorder, self._kept)
        with torch.no_grad(), _default_dtype():
            replay = _Replay(self._recorder, targets, self._kept)
            replay.run()
            replay.leave_generators()
        heap.give_back()  # the temporaries, of up to the largest parameter


def narrowed(part: TensorView, dim: int, start: int, stop: int) -> TensorView:
    """Elements start..stop-1 along a dim."""
    shape = torch.Size(stop - start if d == dim else n for d, n in enumerate(part.shape))
    return TensorView(part.storage, part.dtype, shape, part.stride, part.offset + start * part.stride[dim])


def _places(found: Tensor | Sequence[tuple[Window, Tensor]] | None) -> Sequence[tuple[Window | None, Tensor]]:
    if found is None:
        return ()
    return [(None, found)] if isinstance(found, Tensor) else found


def record_factory(build: Callable[[], nn.Module]) -> LazyModel:
    """Run a model's factory without memory for its parameters. Raises JobRefused if it cannot be recorded."""
    states = _States()

    def learn(kept: dict[int, torch.UntypedStorage]) -> None:
        with torch.no_grad(), _default_dtype(), recorder.from_the_start():
            _Replay(recorder, {}, kept, states).run()

    recorder = LazyRecorder(learn)
    with recorder:
        model = build()
    gc.collect()
    parts = {name: recorder.view(param) for name, param in model.named_parameters()}
    params = {part.storage for part in parts.values()}
    for buffer in model.buffers():
        recorder.view(buffer)
    # Also tensors that are no buffers, for example tables of cosines in plain attributes.
    kept = {number: storage for number, storage in recorder.alive() if number not in params}
    return LazyModel(model, recorder, parts, kept)


def _own_memory(model: nn.Module, recorder: LazyRecorder, kept: dict[int, torch.UntypedStorage]) -> None:
    """Give large buffers private memory: the addresses that they have are shared by processes that fork."""
    buffers = list(model.buffers())
    fresh: dict[int, torch.UntypedStorage] = {}
    for buffer in buffers:
        number = recorder.view(buffer).storage
        if number in kept and recorder.is_reserved(number):
            fresh[number] = memory_of(kept[number].nbytes())
    for buffer in buffers:
        part = recorder.view(buffer)
        if part.storage in fresh:
            buffer.data = part.of(fresh[part.storage])
            recorder.adopt(part.storage, fresh[part.storage])
    kept |= fresh


@contextmanager
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class _States:
    """States of the generators before and after draws that may have to be repeated."""

    starts: dict[int, Tensor] = field(default_factory=dict)
    ends: dict[int, Tensor] = field(default_factory=dict)


class _Replay:
    """One run of the list, for the storages that are needed."""

    def __init__(
        self,
        recorder: LazyRecorder,
        targets: dict[int, list[Target]],
        kept: dict[int, torch.UntypedStorage],
        known: _States | None = None,
    ) -> None:
        """known: the states of draws that need not be repeated for the generator's sake; completed here."""
        self._recorder = recorder
        self._targets, self._kept = targets, kept
        self._memory: dict[int, tuple[torch.UntypedStorage, int]] = {}  # with the byte at which it begins
        self._needed, self._last = _needs(recorder.operations, {*targets, *kept})
        self._keeps_states, self._states = known is not None, known or _States()
        self._latest: dict[torch.Generator, int] = {}  # draw
        self._unread: torch.UntypedStorage | None = None

    def run(self) -> None:
        ending: dict[int, list[int]] = {}
        for number, last in self._last.items():
            ending.setdefault(last, []).append(number)
        for at, op in enumerate(self._recorder.operations):
            if self._needed[at] or (op.draw is not None and op.draw.number not in self._states.starts):
                self._run(op, is_needed=self._needed[at])
            for number in ending.get(at, ()):
                self._end(number)
        for number in {*self._targets, *self._kept}:
            if number not in self._last:  # nothing computes it
                self._end(number)

    def leave_generators(self) -> None:
        for draw in self._recorder.ends():
            self._enter(draw)

    def _run(self, op: Operation, is_needed: bool) -> None:
        if op.draw is not None:
            self._enter(op.draw)
        torch.set_default_dtype(op.default_dtype)
        if not is_needed and op.function in ELEMENT_BY_ELEMENT and op.args[0].is_contiguous:
            self._draw_in_pieces(op)
            return
        scratch = () if is_needed else tuple(op.overwrites)

        def real(value: object) -> object:
            if not isinstance(value, TensorView):
                return value
            return value.of(*(self._scratch(value) if value in scratch else self._at(value.storage)))

        args, kwargs = pytree.tree_map(real, (op.args, op.kwargs), is_leaf=lambda value: isinstance(value, TensorView))
        outputs = op.function(*args, **kwargs)
        self._note_end(op)
        if is_needed and op.outputs:
            flat = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
            for output, part in zip(flat, op.outputs, strict=True):
                if part is not None and part.storage in self._last:
                    self._take(part, output)

    def _draw_in_pieces(self, op: Operation) -> None:
        """Draw numbers that nobody reads, to advance the generator, in little memory."""
        part, *args = op.args
        left = part.numel
        while left:
            length = PIECE if left >= PIECE + 16 else left  # of fewer than 16, normal_ draws in another way
            piece = TensorView(part.storage, part.dtype, torch.Size([length]), (1,), 0)
            op.function(piece.of(*self._scratch(piece)), *args, **op.kwargs)
            left -= length
        self._note_end(op)

    def _note_end(self, op: Operation) -> None:
        if op.draw is not None and (op.draw.is_returned_to or self._keeps_states):
            self._states.ends[op.draw.number] = op.draw.generator.get_state()

    def _take(self, part: TensorView, output: Tensor) -> None:
        """Put a new tensor into its storage's place, or let it stand for the storage."""
        fits = (output.shape, output.stride(), output.storage_offset()) == (part.shape, part.stride, part.offset)
        if part.storage in self._kept or self._direct(part.storage) is not None or not fits:
            part.of(*self._at(part.storage)).copy_(output)
        else:
            self._memory[part.storage] = output.untyped_storage(), 0

    def _scratch(self, part: TensorView) -> tuple[torch.UntypedStorage, int]:
        """Memory for values that nobody reads; the same for all of them."""
        if self._unread is None or self._unread.nbytes() < part.end:
            self._unread = None  # before there is a larger one
            self._unread = memory_of(part.end)
        return self._unread, 0

    def _direct(self, number: int) -> Tensor | None:
        """The destination that can stand for a storage, if there is one."""
        targets = self._targets.get(number, [])
        if len(targets) != 1 or number in self._kept:
            return None
        return targets[0].place if targets[0].is_whole_storage(self._recorder.nbytes(number)) else None

    def _at(self, number: int) -> tuple[torch.UntypedStorage, int]:
        if number not in self._memory:
            self._memory[number] = self._begin(number)
        return self._memory[number]

    def _begin(self, number: int) -> tuple[torch.UntypedStorage, int]:
        initial, direct = self._recorder.initial(number), self._direct(number)
        if direct is not None:
            memory = direct.untyped_storage(), int(direct.storage_offset()) * direct.element_size()
        elif number in self._kept:
            memory = self._kept[number], 0
        elif initial is not None and not self._recorder.is_changed(number):
            return initial, 0
        else:
            memory = memory_of(self._recorder.nbytes(number)), 0
        if initial is not None and initial._cdata != memory[0]._cdata:
            nbytes = self._recorder.nbytes(number)
            whole = TensorView(number, torch.uint8, torch.Size([nbytes]), (1,), 0)
            whole.of(*memory).copy_(whole.of(initial))
        return memory

    def _end(self, number: int) -> None:
        """Finish a storage: no later operation touches it."""
        for target in self._targets.get(number, ()):
            if self._direct(number) is None:
                target.place.copy_(target.part.of(*self._at(number)))
            elif number not in self._memory:
                self._at(number)
        if number in self._kept:
            self._at(number)
        self._memory.pop(number, None)

    def _enter(self, draw: Draw) -> None:
        """Bring the generator into its state of when the factory drew."""
        generator = draw.generator
        if draw.number in self._states.starts:
            generator.set_state(self._states.starts[draw.number])
        elif draw.state is not None:
            generator.set_state(draw.state)
        elif draw.follows is not None and draw.follows != self._latest.get(generator):
            generator.set_state(self._states.ends[draw.follows])
        if self._keeps_states:
            self._states.starts[draw.number] = generator.get_state()
        self._latest[generator] = draw.number


def _needs(operations: Sequence[Operation], wanted: set[int]) -> tuple[list[bool], dict[int, int]]:
    """Operations that the wanted storages need, and the last operation that touches each storage in use.

    Found backwards, as liveness is: a storage is live from its first write to its last use, and an
    operation that overwrites all of it ends the life of its previous content.
    """
    live, last = set(wanted), dict[int, int]()
    needed = [False] * len(operations)
    for at in range(len(operations) - 1, -1, -1):
        op = operations[at]
        writes = {part.storage for part in (*op.writes, *op.outputs) if part is not None}
        needed[at] = not live.isdisjoint(writes)
        if needed[at]:
            live -= {part.storage for part in op.outputs if part is not None} | op.overwritten
        if needed[at] or op.draw is not None:
            live |= {part.storage for part in op.reads}
            touched = writes | {part.storage for part in op.reads} if needed[at] else {p.storage for p in op.reads}
            for number in touched:
                last.setdefault(number, at)
    return needed, last
