"""One forward as a list of calls, so that it can be cut between them.

The model's own code runs once, on one shard's rows, and every call of a leaf module or of a torch
function is written down with the values it takes and makes:

    h = self.embed(x)            0 = module embed (input 0)
    for block in self.blocks:    1 = module blocks.0 (0)
        h = block(h)             2 = module blocks.1 (1)
    return h.mean(1)             3 = Tensor.mean (2, 1)

Modules that hold no cut inside stay whole, Python and all; only those around a cut are looked into.
Python's own decisions there are frozen, so the record holds for one shape of input. A decision that
was read from a tensor's value is checked in every step (a guard), so is a shape that was asked for;
what the record would not see is refused: chance outside torch, tensors handed to NumPy, autocast,
hooks. An autograd Function of the user's own is one call, with its own backward. The
kernels called, and their order, are those of the uncut forward: autograd's sums keep their bits.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from samestep.errors import JobRefused
from samestep.numerics import random_streams

PACKAGES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, sys.modules["samestep"]))
READERS = {
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__contains__,
    Tensor.item,
    Tensor.tolist,
    Tensor.is_nonzero,
    torch.is_nonzero,
    torch.equal,
    torch.allclose,
}
SHAPES = {Tensor.shape.__get__, Tensor.size, Tensor.__len__, Tensor.numel, Tensor.nelement, torch.numel}  # type: ignore[attr-defined]
LEAVE_TORCH = {Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
HOOKS = {Tensor.register_hook, Tensor.retain_grad}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...), torch.dtype, torch.device, torch.layout, slice)


@dataclass(frozen=True)
class Storage:
    """Memory that tensors lie in, several of them perhaps."""

    number: int
    nbytes: int


@dataclass(frozen=True)
class SavedForBackward:
    """What a leaf module inside a call, or the functions between two, keep for backward; in forward's order."""

    storages: tuple[Storage, ...]
    gradients: int  # bytes: of what it makes and takes, which its backward has at once
    rearranged: int = 0  # bytes: a convolution's inputs and outputs in a layout of the kernel's own


@dataclass(frozen=True)
class Value:
    """The i-th tensor of a forward, in the order of making; the batch's tensors come first."""

    index: int


@dataclass(frozen=True)
class NamedTensor:
    """A parameter or buffer that the code around the leaf modules uses itself."""

    name: str


@dataclass(frozen=True)
class Call:
    """One call, and how to do it again."""

    what: str | Callable[..., Any]  # a leaf module's name, or a function
    arguments: Any  # (args, kwargs) with Value and Named for tensors
    makes: tuple[int, ...]  # the values of the result's tensors, in the order of its leaves
    changes: frozenset[int]  # values that it changes in place
    stage: int
    place: str  # file:line of the code that calls
    expects: Any = None  # of a guard: what the call returned
    is_guard: bool = False
    asked: tuple[torch.Size | None, ...] = ()  # of what it makes: shapes on which forward may have decided
    kept: tuple[SavedForBackward, ...] = ()  # besides the model's own state
    later: tuple[tuple[Storage, int], ...] = ()  # per Linear that may leave its product for later: input, bytes of y

    @property
    def keeps(self) -> tuple[Storage, ...]:
        """What it keeps for its backward."""
        return tuple(dict.fromkeys(storage for part in self.kept for storage in part.storages))

    @property
    def takes(self) -> frozenset[int]:
        return frozenset(leaf.index for leaf in pytree.tree_leaves(self.arguments) if isinstance(leaf, Value))

    @property
    def names(self) -> frozenset[str]:
        """Of the parameters and buffers that it uses by itself."""
        return frozenset(leaf.name for leaf in pytree.tree_leaves(self.arguments) if isinstance(leaf, NamedTensor))

    def __str__(self) -> str:
        return self.what if isinstance(self.what, str) else getattr(self.what, "__name__", str(self.what))


@dataclass
class Recording:
    """What a forward does with a batch of one signature."""

    num_inputs: int  # the batch's tensors are values 0 .. num_inputs - 1
    calls: list[Call]
    result: Any  # what forward returns, with Value for tensors
    entered: list[str]  # the first modules of the stages after the first, as they were met
    shapes: dict[int, torch.Size] = field(default_factory=dict)
    nbytes: dict[int, int] = field(default_factory=dict)
    storages: dict[int, Storage] = field(default_factory=dict)
    floats: set[int] = field(default_factory=set)  # values that may have a gradient


def signature(batch: Any) -> str:
    """What a recording depends on: shapes and types of the batch's tensors, and its other values."""
    leaves, spec = pytree.tree_flatten(batch)
    parts = [f"{leaf.dtype}{tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
    return f"{spec} {parts}"


def batch_tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def record(
    model: nn.Module, forward: Callable[[nn.Module, Any], Any], batch: Any, starts: Sequence[str], cuts: Collection[str]
) -> Recording:
    """Run `forward(model, batch)` once and write it down.

    starts: the modules at whose call a further stage begins, in order. cuts: further modules that
    must be calls of their own. Raises JobRefused where the forward cannot be cut.
    """
    recorder = _Recorder(model, batch, starts, {*starts, *cuts})
    with recorder.watching():
        result = forward(model, batch)
    recording = recorder.recording
    recording.result = pytree.tree_map(recorder.reference, result)
    recording.calls = [recorder.with_asked(call) for call in recording.calls]
    return recording


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, batch: Any, starts: Sequence[str], cuts: Collection[str]) -> None:
        super().__init__()
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._open = {"", *(name[:i] for name in cuts for i, c in enumerate(name) if c == ".")}
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._state = {id(tensor): name for name, tensor in reversed(state)}
        self._own = {name: id(tensor) for name, tensor in state}
        self._starts = list(starts)
        self._in_leaf = False
        self._in_function = ""  # where the autograd Function was applied that is running
        self._autocast = _autocast()
        self._streams = random_streams.leave()
        self._asked: set[int] = set()  # values whose shape was read
        self._values: dict[int, int] = {}
        self._kept = _Kept(tensor for _, tensor in state)
        self._made: list[Tensor] = []  # also keeps them alive: ids must not be used again
        inputs = batch_tensors(batch)
        self.recording = Recording(len(inputs), [], None, [])
        for tensor in inputs:
            self._number(tensor)

    @contextmanager
    def watching(self) -> Iterator[None]:
        plain = nn.Module.__call__

        def noting(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = plain(module, *args, **kwargs)
            if not module._modules:
                self._kept.end_of_leaf(module, (args, kwargs), result)
            if type(module) is nn.Linear and _may_leave(module):
                self._kept.leave(args[0] if args else kwargs["input"], result)
            return result

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._module(module, noting, args, kwargs)

        plain_apply: Any = vars(torch.autograd.Function)["apply"]

        def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
            return self._function(plain_apply.__get__(None, function), args, kwargs)

        from_numpy = torch.from_numpy
        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
        torch.from_numpy = lambda ndarray: self._write(from_numpy, from_numpy, (ndarray,), {})  # no mode sees it
        try:
            with self:
                yield
            self._check_surroundings("the end")
        finally:
            nn.Module.__call__ = plain  # type: ignore[method-assign]
            torch.autograd.Function.apply = plain_apply  # type: ignore[method-assign]
            torch.from_numpy = from_numpy

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._in_leaf:
            return func(*args, **(kwargs or {}))
        self._in_leaf = True
        try:
            return self._write(func, func, args, kwargs or {})
        finally:
            self._in_leaf = False

    def _function(self, apply: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An autograd Function: torch shows no mode its backward."""
        if self._in_leaf:
            return apply(*args, **kwargs)
        self._in_leaf, self._in_function = True, _place()
        try:
            return self._write(apply, apply, args, kwargs)
        finally:
            self._in_leaf, self._in_function = False, ""

    def _module(self, module: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self._modules.get(id(module))
        if self._in_function and name is not None:
            raise JobRefused(
                f"forward calls {name} inside an autograd Function at {self._in_function}, where a cut cannot look "
                "(torch.utils.checkpoint with use_reentrant=True does): leave it out, stages recompute by themselves "
                "(recompute = true)"
            )
        if self._in_leaf:
            return plain(module, *args, **kwargs)
        own = module.named_parameters() if name is not None else ()
        strange = [local for local, param in own if self._own.get(f"{name}.{local}" if name else local) != id(param)]
        if strange:
            raise JobRefused(
                f"forward calls {name} at {_place()} with another tensor in the place of its parameter {strange[0]} "
                "(torch.func.functional_call does), and a cut forward would not: call the layer with its own parameters"
            )
        if name in self._starts:
            self._begin_stage(name)
        if name in self._open:
            return plain(module, *args, **kwargs)
        self._in_leaf = True
        try:
            what = module if name is None else name
            return self._write(what, lambda *a, **k: plain(module, *a, **k), args, kwargs)
        finally:
            self._in_leaf = False

    def _begin_stage(self, name: str) -> None:
        met = self.recording.entered
        if name in met:
            raise JobRefused(
                f"the stage that begins at {name} would begin twice: forward calls {name} again at {_place()}; "
                "cut where every layer is called once"
            )
        if name != self._starts[len(met)]:
            raise JobRefused(
                f"forward reaches {name} before {self._starts[len(met)]}: name the stages' first layers in the order "
                "in which forward calls them"
            )
        met.append(name)

    def _write(self, what: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._check_surroundings(str(what) if isinstance(what, str) else getattr(what, "__name__", str(what)))
        arguments = pytree.tree_map(self.reference, (args, kwargs))
        versions = [tensor._version for tensor in self._made]
        with self._kept.counting():
            result = function(*args, **kwargs)
        self._streams = random_streams.leave()
        changed = [i for i, tensor in enumerate(self._made[: len(versions)]) if tensor._version != versions[i]]
        leaves = pytree.tree_leaves(result)
        makes = tuple(self._number(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        is_guard = not makes and what in READERS if not isinstance(what, str | nn.Module) else False
        if not (makes or changed or is_guard or what is torch._C._set_grad_enabled):
            self._note_asked(what, arguments)
            return result  # a shape, a type: frozen with the Python code around it
        stage = len(self.recording.entered)
        kept, later = self._kept.take()
        call = Call(
            what,
            arguments,
            makes,
            frozenset(changed),
            stage,
            _place(),
            result if is_guard else None,
            is_guard,
            kept=kept,
            later=later,
        )
        _check_plain(call)
        self.recording.calls.append(call)
        return result

    def _note_asked(self, what: Any, arguments: Any) -> None:
        if isinstance(what, str | nn.Module):
            return
        if what in HOOKS:
            raise JobRefused(
                f"forward hooks into the gradient of a tensor at {_place()}, and a cut forward would not: "
                "do it in a module of its own"
            )
        if what in LEAVE_TORCH:
            raise JobRefused(
                f"forward hands a tensor to NumPy at {_place()}, and what is computed there is not seen when forward "
                "is cut: compute it with torch, or in a module of its own"
            )
        if what in SHAPES:
            self._asked |= {leaf.index for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Value)}

    def with_asked(self, call: Call) -> Call:
        """The call with the shapes of what it makes that forward asked for."""
        if not self._asked.intersection(call.makes):
            return call
        shapes = self.recording.shapes
        return replace(call, asked=tuple(shapes[v] if v in self._asked else None for v in call.makes))

    def _check_surroundings(self, before: str) -> None:
        """Between two calls nothing may happen that is not written down."""
        if _autocast() != self._autocast:
            raise JobRefused(
                f"forward switches autocast before {before} (at {_place()}), and a cut forward does not: "
                'use Job(precision="bfloat16"), or cut elsewhere'
            )
        if not random_streams.same(random_streams.leave(), self._streams):
            raise JobRefused(
                f"forward moves a random generator before {before} (at {_place()}) and outside of torch's functions, "
                "and a cut forward would not: draw with torch.rand, or in a module of its own"
            )

    def reference(self, leaf: Any) -> Any:
        """How a record names a tensor; other things stand for themselves."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._values:
            return Value(self._values[id(leaf)])
        return NamedTensor(self._state[id(leaf)]) if id(leaf) in self._state else leaf

    def _number(self, tensor: Tensor) -> int:
        index = len(self._made)
        self._values[id(tensor)] = index
        self._made.append(tensor)
        self.recording.shapes[index] = tensor.shape
        self.recording.nbytes[index] = tensor.numel() * tensor.element_size()
        self.recording.storages[index] = self._kept.storage(tensor)
        if tensor.is_floating_point():
            self.recording.floats.add(index)
        return index


class _Kept:
    """Notes the memory that calls keep for backward."""

    def __init__(self, state: Iterable[Tensor]) -> None:
        self._state = {tensor.untyped_storage().data_ptr() for tensor in state}
        self._numbers: dict[int, int] = {}
        self._now: dict[Storage, None] = {}
        self._parts: list[SavedForBackward] = []
        self._left: list[tuple[Storage, int]] = []

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def take(self) -> tuple[tuple[SavedForBackward, ...], tuple[tuple[Storage, int], ...]]:
        """What was kept, and what Linears may leave for later, since it was last asked."""
        if self._now:  # functions: most keep what has the size of their gradients
            self._end_part(2 * max(storage.nbytes for storage in self._now))
        found = tuple(self._parts), tuple(self._left)
        self._parts, self._left = [], []
        return found

    def end_of_leaf(self, module: nn.Module, arguments: Any, result: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves((arguments, result)) if isinstance(leaf, Tensor)]
        gradients = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.requires_grad)
        rearranged = 0
        if isinstance(module, CONVOLUTIONS):
            rearranged = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._end_part(gradients, rearranged)

    def _end_part(self, gradients: int, rearranged: int = 0) -> None:
        self._parts.append(SavedForBackward(tuple(self._now), gradients, rearranged))
        self._now = {}

    def leave(self, x: Tensor, y: Tensor) -> None:
        self._left.append((self.storage(x), y.numel() * y.element_size()))

    def storage(self, tensor: Tensor) -> Storage:
        memory = tensor.untyped_storage()
        return Storage(self._numbers.setdefault(memory.data_ptr(), len(self._numbers)), memory.nbytes())

    def _note(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self._state:
            self._now[self.storage(tensor)] = None
        return tensor.detach()  # an operation that keeps its own output would otherwise keep itself for ever


def _may_leave(linear: nn.Linear) -> bool:
    """Whether backward could leave the gradient of its weight for later (`linear.py`)."""
    return linear.weight.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def _check_plain(call: Call) -> None:
    """What is no tensor cannot be sent, and what changes in Python would be frozen."""
    for leaf in pytree.tree_leaves(call.arguments):
        if not (isinstance(leaf, (*PLAIN, Tensor, Value, NamedTensor)) or callable(leaf)):
            raise JobRefused(
                f"{call} (called at {call.place}) is given a {type(leaf).__name__}, and only tensors and plain values "
                "can cross a cut: cut elsewhere, or leave it out of the call"
                + (" (use_cache=False does)" if "Cache" in type(leaf).__name__ else "")
            )


def _place() -> str:
    """Where the user's code is."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGES):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def perform(call: Call, values: dict[int, Tensor], model: nn.Module) -> None:
    """Do a recorded call again: read what it takes from `values`, leave there what it makes."""

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return values[leaf.index]
        return _attribute(model, leaf.name) if isinstance(leaf, NamedTensor) else leaf

    args, kwargs = pytree.tree_map(resolve, call.arguments)
    function = model.get_submodule(call.what) if isinstance(call.what, str) else call.what
    result = function(*args, **kwargs)
    if call.is_guard:
        if result != call.expects:
            raise JobRefused(
                f"forward asks for a tensor's value at {call.place} and found {call.expects!r} when it was cut, "
                f"{result!r} now: a cut forward takes the same way every time; cut elsewhere, or compute without if"
            )
        return
    made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    _check_shapes(call, made)
    values.update(zip(call.makes, made, strict=True))


def _check_shapes(call: Call, made: Sequence[Tensor]) -> None:
    """Raises JobRefused when a decision that was taken on shapes would be another one now."""
    if len(made) != len(call.makes):
        found, expected = f"{len(made)} tensors", f"{len(call.makes)}"
    else:
        wrong = [(t.shape, s) for t, s in zip(made, call.asked, strict=False) if s is not None and s != t.shape]
        if not wrong:
            return
        found, expected = (str(tuple(shape)) for shape in wrong[0])
    raise JobRefused(
        f"{call} (called at {call.place}) gives {found}, and gave {expected} when forward was cut, and forward asked "
        "for that: a cut forward takes the same way every time; compute with masks and torch.sum instead of sizes"
    )


def _attribute(model: nn.Module, name: str) -> Any:
    prefix, _, local = name.rpartition(".")
    return getattr(model.get_submodule(prefix), local)
