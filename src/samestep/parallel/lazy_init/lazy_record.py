"""Tensors with addresses and no memory; operations on them are recorded as they are called.

An operation is one or more of these:

    recorded          shape and strides from the meta device, address space from `reserve`
    known             small, and of known values only: computed at once as well
    random            never run; the generator is moved to a mark, so that a later draw shows whether
                      somebody seeded it or restored an earlier state in between
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from samestep.errors import JobRefused
from samestep.parallel.lazy_init.address_space import SMALL, memory_of, reserve
from samestep.parallel.lazy_init.draws import Draw, Marks
from samestep.parallel.lazy_init.operations import Operation, TensorView
from samestep.parallel.lazy_init.shape_inference import WITHOUT_VALUES, inferred
from samestep.parallel.user_code import user_place

OVERWRITING = {  # in place, without reading the previous values
    "zero_", "fill_", "copy_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_",
    "geometric_", "eye_",
}  # fmt: skip
UNDECLARED = {"native_batch_norm"}  # writes its running statistics, which its schema does not declare


@dataclass
class _Storage:
    alive: StorageWeakRef
    nbytes: int
    known: bool
    reserved: bool = False
    changed: bool = False
    initial: torch.UntypedStorage | None = None  # its content, if the factory did not make it


class LazyRecorder:
    """Context in which torch operations are recorded; afterwards it holds the list of them."""

    def __init__(self, compute: Callable[[dict[int, torch.UntypedStorage]], None]) -> None:
        """compute: fills storages, by number, with the values that the list so far gives them."""
        self.operations: list[Operation] = []
        self._compute = compute
        self._storages: list[_Storage] = []
        self._numbers: dict[int, int] = {}
        self._draws: list[Draw] = []
        self._marks: dict[torch.Generator, Marks] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._marks[torch.default_generator] = Marks(torch.default_generator, torch.default_generator.get_state())
        self._stack.enter_context(_FunctionRecorder(self))
        self._stack.enter_context(_DispatchRecorder(self))
        self._stack.enter_context(_truncated_normal_as_one(self))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        self._ends = [marks.find(-1) for marks in self._marks.values()]
        start = self._marks[torch.default_generator].start
        torch.default_generator.set_state(start)

    # The list and its storages.

    def view(self, tensor: Tensor) -> TensorView:
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage._cdata)
        if number is None:
            number = self._add_foreign(storage)
        return TensorView(number, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def nbytes(self, number: int) -> int:
        return self._storages[number].nbytes

    def initial(self, number: int) -> torch.UntypedStorage | None:
        return self._storages[number].initial

    def is_changed(self, number: int) -> bool:
        return self._storages[number].changed

    def is_reserved(self, number: int) -> bool:
        return self._storages[number].reserved

    def is_known(self, tensor: Tensor) -> bool:
        return self._storages[self.view(tensor).storage].known

    def alive(self) -> Iterator[tuple[int, torch.UntypedStorage]]:
        for number, storage in enumerate(self._storages):
            expired = storage.alive.expired()  # type: ignore[no-untyped-call]
            if not expired and (storage.initial is None or storage.changed):
                yield number, torch.UntypedStorage._new_with_weak_ptr(storage.alive.cdata)

    def adopt(self, number: int, storage: torch.UntypedStorage) -> None:
        """Let `storage` stand for a recorded one from here on."""
        self._numbers[storage._cdata] = number
        self._storages[number].alive = _weak(storage)
        self._storages[number].reserved = False

    def ends(self) -> list[Draw]:
        return self._ends

    # Called by the modes below.

    def new(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, *, known: bool) -> Tensor:
        """A new CPU tensor; a large one has an address only."""
        span = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if shape.numel() else 0
        nbytes = span * dtype.itemsize
        storage = reserve(nbytes) if nbytes > SMALL else memory_of(nbytes)
        self._add(storage, _Storage(_weak(storage), nbytes, known, reserved=nbytes > SMALL))
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, stride)

    def _add(self, storage: torch.UntypedStorage, entry: _Storage) -> int:
        # The weak reference keeps the address from being used again.
        self._numbers[storage._cdata] = len(self._storages)
        self._storages.append(entry)
        return len(self._storages) - 1

    def _add_foreign(self, storage: torch.UntypedStorage) -> int:
        """Number a storage that no operation made: loaded, or made of Python's numbers."""
        with _disable_current_modes():
            initial = storage.clone() if storage.nbytes() <= SMALL else storage  # type: ignore[no-untyped-call]
        return self._add(
            storage, _Storage(_weak(storage), storage.nbytes(), storage.nbytes() <= SMALL, initial=initial)
        )

    def write(
        self,
        function: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        reads: Sequence[Tensor],
        writes: Sequence[Tensor] = (),
        overwrites: bool = False,
        outputs: Sequence[Tensor | None] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        def viewed(value: object) -> object:
            return self.view(value) if isinstance(value, Tensor) else value

        parts = [self.view(tensor) for tensor in writes]
        for p in parts:
            self._storages[p.storage].changed = True
        covered = {p.storage for p in parts if p.is_dense and p.numel * p.dtype.itemsize == self.nbytes(p.storage)}
        args, kwargs = pytree.tree_map(viewed, (args, kwargs))
        self.operations.append(
            Operation(
                function,
                args,
                kwargs,
                [self.view(tensor) for tensor in reads],
                parts,
                parts if overwrites else [],
                covered if overwrites else set(),
                [None if tensor is None else self.view(tensor) for tensor in outputs],
                None if generator is None else self._draw(generator),
            )
        )

    def set_known(self, tensor: Tensor, known: bool) -> None:
        self._storages[self.view(tensor).storage].known = known

    def compute_values(self, tensors: Sequence[Tensor]) -> None:
        """Compute values that the factory reads and that are not known."""
        parts = {self.view(tensor).storage: tensor for tensor in tensors if not self.is_known(tensor)}
        if not parts:
            return
        for number in parts:
            if self.initial(number) is not None and self.nbytes(number) > SMALL and self.is_changed(number):
                raise JobRefused(
                    "the model's factory changes a tensor that it has from elsewhere (a file, NumPy) and then reads "
                    f"its values at {user_place(whole_path=True)}: change a clone of it, or give the job a model "
                    "instead of a factory"
                )
        with _disable_current_modes():
            self._compute({number: tensor.untyped_storage() for number, tensor in parts.items()})
        for tensor in parts.values():
            self.set_known(tensor, True)

    @contextmanager
    def from_the_start(self) -> Iterator[None]:
        """Context with the generators' states of before the recording; restores the present ones."""
        states = {generator: generator.get_state() for generator in self._marks}
        torch.default_generator.set_state(self._marks[torch.default_generator].start)
        try:
            yield
        finally:
            for generator, state in states.items():
                generator.set_state(state)

    def is_small(self, tensor: Tensor) -> bool:
        return self.nbytes(self.view(tensor).storage) <= SMALL

    def covers(self, tensor: Tensor) -> bool:
        part = self.view(tensor)
        return part.is_dense and part.numel * part.dtype.itemsize == self.nbytes(part.storage)

    def _draw(self, generator: torch.Generator) -> Draw:
        if generator not in self._marks:
            self._marks[generator] = Marks(generator, None)
        draw = self._marks[generator].find(len(self._draws))
        self._marks[generator].mark(draw)
        self._draws.append(draw)
        return draw


def _weak(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


class _DispatchRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, for a second, to keep it out of the method below

    def __init__(self, recorder: LazyRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._call(func, args, dict(kwargs or {}))

    def _call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in inputs) or torch.device(kwargs.get("device") or "cpu").type == "meta":
            return func(*args, **kwargs)  # without values anyhow
        schema = func._schema
        name = schema.name.split("::")[-1]
        if func.is_view or torch.Tag.inplace_view in func.tags:
            return func(*args, **kwargs)
        returned = [value.type.kind() for value in schema.returns]
        if any(kind not in ("TensorType", "ListType", "OptionalType") for kind in returned):
            self._recorder.compute_values(inputs)
            return func(*args, **kwargs)
        mutated = _mutated(schema, args, kwargs)
        writes = [leaf for leaf in pytree.tree_leaves(list(mutated.values())) if isinstance(leaf, Tensor)]
        if name in UNDECLARED and args[5]:
            writes += [tensor for tensor in args[3:5] if tensor is not None]
        overwrites = bool(writes) and (name in OVERWRITING or torch.Tag.out in func.tags)
        ids = {id(tensor) for tensor in writes} if overwrites else set()
        reads = [tensor for tensor in inputs if id(tensor) not in ids]
        view = self._recorder.view
        if overwrites and not {view(t).storage for t in reads}.isdisjoint(view(t).storage for t in writes):
            overwrites, reads = False, inputs
        known = all(self._recorder.is_known(tensor) for tensor in reads)
        generator = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            generator, known = kwargs.get("generator") or torch.default_generator, False
        if not mutated or any(value.alias_info is None for value in schema.returns):
            outputs, flat = self._outputs(func, args, kwargs, writes, known)
            if name not in WITHOUT_VALUES:
                self._recorder.write(func, args, kwargs, reads=reads, writes=writes, outputs=flat, generator=generator)
            return outputs
        self._recorder.write(func, args, kwargs, reads=reads, writes=writes, overwrites=overwrites, generator=generator)
        self._update(func, args, kwargs, writes, known)
        results = [mutated[_alias(value)] for value in schema.returns]
        return results[0] if len(results) == 1 else (tuple(results) if results else None)

    def _update(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], writes: Sequence[Tensor], known: bool
    ) -> None:
        """Compute in place if all values are known; note for each tensor written whether it is."""
        recorder = self._recorder
        # Part of an unknown tensor does not make it known.
        fits = all(recorder.is_small(t) and (recorder.covers(t) or recorder.is_known(t)) for t in writes)
        if known and fits:
            func(*args, **kwargs)
        for tensor in writes:
            recorder.set_known(tensor, known and fits)

    def _outputs(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], writes: Sequence[Tensor], known: bool
    ) -> tuple[Any, list[Tensor | None]]:
        """New tensors like those returned, with values if they are small and known."""
        recorder = self._recorder
        if torch.Tag.dynamic_output_shape in func.tags:
            recorder.compute_values([leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
            shapes = func(*args, **kwargs)
        else:
            shapes = inferred(func, args, kwargs)
        leaves, spec = pytree.tree_flatten(shapes)
        if any(leaf.layout != torch.strided for leaf in leaves if isinstance(leaf, Tensor)):
            raise JobRefused(
                f"the model's factory makes a sparse tensor at {user_place(whole_path=True)}, and --memory-limit "
                "follows dense ones only: make it in forward, from its indices and values"
            )
        small = all(leaf.untyped_storage().nbytes() <= SMALL for leaf in leaves if isinstance(leaf, Tensor))
        known = known and small and not writes
        values = pytree.tree_leaves(func(*args, **kwargs)) if known else leaves
        made: list[Any] = []
        for leaf, value in zip(leaves, values, strict=True):
            if not isinstance(leaf, Tensor):
                made.append(leaf)
                continue
            tensor = recorder.new(value.shape, value.stride(), value.dtype, known=known)
            made.append(tensor.copy_(value) if known else tensor)
        for tensor in writes:
            recorder.set_known(tensor, False)
        return pytree.tree_unflatten(made, spec), [leaf for leaf in made if isinstance(leaf, Tensor)]


class _FunctionRecorder(TorchFunctionMode):
    """Mode that catches reading of a tensor's memory without an operation."""

    READERS = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__reduce_ex__, Tensor.__dlpack__)

    def __init__(self, recorder: LazyRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self.READERS and not args[0].is_meta:
            self._recorder.compute_values(args[:1])
            if func is Tensor.numpy:
                array = func(*args, **(kwargs or {}))
                array.flags.writeable = False  # writing there could not be recorded
                return array
        if func is Tensor.__deepcopy__ and not args[0].is_meta and args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


@contextmanager
def _truncated_normal_as_one(recorder: LazyRecorder) -> Iterator[None]:
    """Context in which trunc_normal_ is one operation; torch's own reads its values, to draw some of them again."""
    original = torch.nn.init._no_grad_trunc_normal_

    def draw(
        tensor: Tensor, mean: float, std: float, a: float, b: float, generator: torch.Generator | None = None
    ) -> Tensor:
        if tensor.is_meta:
            return tensor
        values = tensor.detach()
        arguments = (values, mean, std, a, b, generator)
        source = generator or torch.default_generator
        recorder.write(original, arguments, {}, reads=(), writes=[values], overwrites=True, generator=source)
        recorder.set_known(values, False)
        return tensor

    torch.nn.init._no_grad_trunc_normal_ = draw
    try:
        yield
    finally:
        torch.nn.init._no_grad_trunc_normal_ = original


def _mutated(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that an operation writes to, by alias set."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs)
    return {
        _alias(argument): given[argument.name]
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and given.get(argument.name) is not None
    }


def _alias(value: Any) -> str:
    return "".join(sorted(value.alias_info.before_set))
