"""Recorder of a forward: the model's own code runs once, on one shard's rows, and its calls are recorded.

Every call of a leaf module or of a torch function is recorded, with the values that it takes and makes.
Modules that hold no cut inside are single calls, Python and all; only those around a cut are looked into.
Python's own decisions there are frozen, so the record holds for one shape of input. A decision that
was read from a tensor's value is checked in every step (a guard), and so is a shape that was read.
What the record would not see is refused: randomness outside torch, tensors passed to NumPy, autocast,
hooks. An autograd Function of the user's own is one call, with its own backward.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from samestep.errors import JobRefused
from samestep.numerics import random_streams
from samestep.parallel.cutting.recording import (
    Call,
    NamedTensor,
    Recording,
    SavedForBackward,
    Storage,
    Value,
    batch_tensors,
)
from samestep.parallel.user_code import user_place

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


def record(
    model: nn.Module, forward: Callable[[nn.Module, Any], Any], batch: Any, starts: Sequence[str], cuts: Collection[str]
) -> Recording:
    """Run `forward(model, batch)` once and record it.

    starts: the modules at whose call a further stage begins, in order. cuts: further modules that
    must be calls of their own. Raises JobRefused if the forward cannot be cut.
    """
    recorder = _Recorder(model, batch, starts, {*starts, *cuts})
    with recorder.active():
        result = forward(model, batch)
    recording = recorder.recording
    recording.result = pytree.tree_map(recorder.reference, result)
    recording.calls = [recorder.with_expected_shapes(call) for call in recording.calls]
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
        self._in_function = ""  # the line at which the running autograd Function was applied
        self._autocast = _autocast()
        self._streams = random_streams.leave()
        self._shapes_read: set[int] = set()  # values
        self._values: dict[int, int] = {}
        self._saved = _SavedTensors(tensor for _, tensor in state)
        self._made: list[Tensor] = []  # also keeps them alive: ids must not be used again
        inputs = batch_tensors(batch)
        self.recording = Recording(len(inputs), [], None, [])
        for tensor in inputs:
            self._number(tensor)

    @contextmanager
    def active(self) -> Iterator[None]:
        plain = nn.Module.__call__

        def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = plain(module, *args, **kwargs)
            if not module._modules:
                self._saved.end_of_leaf(module, (args, kwargs), result)
            if type(module) is nn.Linear and _may_defer(module):
                self._saved.defer(args[0] if args else kwargs["input"], result)
            return result

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._module(module, counted, args, kwargs)

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
        """Record a call of an autograd Function: torch shows its backward to no mode."""
        if self._in_leaf:
            return apply(*args, **kwargs)
        self._in_leaf, self._in_function = True, user_place()
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
                f"forward calls {name} at {user_place()} with another tensor in place of its parameter {strange[0]} "
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
                f"the stage that begins at {name} would begin twice: forward calls {name} again at {user_place()}; "
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
        with self._saved.counted():
            result = function(*args, **kwargs)
        self._streams = random_streams.leave()
        changed = [i for i, tensor in enumerate(self._made[: len(versions)]) if tensor._version != versions[i]]
        leaves = pytree.tree_leaves(result)
        makes = tuple(self._number(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        is_guard = not makes and what in READERS if not isinstance(what, str | nn.Module) else False
        if not (makes or changed or is_guard or what is torch._C._set_grad_enabled):
            self._note_reading(what, arguments)
            return result  # a shape, a type: frozen with the Python code around it
        stage = len(self.recording.entered)
        saved, deferrable = self._saved.take()
        call = Call(what, arguments, makes, frozenset(changed), stage, user_place(), saved=saved, deferrable=deferrable)
        if is_guard:
            call = replace(call, expected=result, is_guard=True)
        _check_plain(call)
        self.recording.calls.append(call)
        return result

    def _note_reading(self, what: Any, arguments: Any) -> None:
        """Note the values whose shape is read by a call that makes no tensor."""
        if isinstance(what, str | nn.Module):
            return
        _check_reading(what)
        if what in SHAPES:
            self._shapes_read |= {leaf.index for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Value)}

    def with_expected_shapes(self, call: Call) -> Call:
        """The call with the shapes of those of its results whose shape forward read."""
        if not self._shapes_read.intersection(call.makes):
            return call
        shapes, read = self.recording.shapes, self._shapes_read
        return replace(call, expected_shapes=tuple(shapes[v] if v in read else None for v in call.makes))

    def _check_surroundings(self, before: str) -> None:
        """Raise JobRefused if something has happened since the last call that is not recorded."""
        if _autocast() != self._autocast:
            raise JobRefused(
                f"forward switches autocast before {before} (at {user_place()}), and a cut forward does not: "
                'use Job(precision="bfloat16"), or cut elsewhere'
            )
        if not random_streams.same(random_streams.leave(), self._streams):
            raise JobRefused(
                f"forward moves a random generator before {before} (at {user_place()}) and outside of torch's "
                "functions, and a cut forward would not: draw with torch.rand, or in a module of its own"
            )

    def reference(self, leaf: Any) -> Any:
        """The name of a tensor in the record; other things stand for themselves."""
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
        self.recording.storages[index] = self._saved.storage(tensor)
        if tensor.is_floating_point():
            self.recording.floats.add(index)
        return index


class _SavedTensors:
    """Counter of the memory that calls save for backward."""

    def __init__(self, state: Iterable[Tensor]) -> None:
        self._state = {tensor.untyped_storage().data_ptr() for tensor in state}
        self._numbers: dict[int, int] = {}
        self._now: dict[Storage, None] = {}
        self._parts: list[SavedForBackward] = []
        self._deferrable: list[tuple[Storage, int]] = []

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def take(self) -> tuple[tuple[SavedForBackward, ...], tuple[tuple[Storage, int], ...]]:
        """Tensors saved, and products that Linears may defer, since the last call."""
        if self._now:  # functions: most save tensors as large as their gradients
            self._end_part(2 * max(storage.nbytes for storage in self._now))
        found = tuple(self._parts), tuple(self._deferrable)
        self._parts, self._deferrable = [], []
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

    def defer(self, x: Tensor, y: Tensor) -> None:
        self._deferrable.append((self.storage(x), y.numel() * y.element_size()))

    def storage(self, tensor: Tensor) -> Storage:
        memory = tensor.untyped_storage()
        return Storage(self._numbers.setdefault(memory.data_ptr(), len(self._numbers)), memory.nbytes())

    def _note(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self._state:
            self._now[self.storage(tensor)] = None
        return tensor.detach()  # an operation that saves its own output would otherwise keep itself alive for ever


def _may_defer(linear: nn.Linear) -> bool:
    """True if backward could defer the gradient of its weight (`linear.py`)."""
    return linear.weight.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def _check_reading(what: Any) -> None:
    """Raise JobRefused for a function whose effect no record would show."""
    if what in HOOKS:
        raise JobRefused(
            f"forward hooks into the gradient of a tensor at {user_place()}, and a cut forward would not: "
            "do it in a module of its own"
        )
    if what in LEAVE_TORCH:
        raise JobRefused(
            f"forward hands a tensor to NumPy at {user_place()}, and what is computed there is not seen when "
            "forward is cut: compute it with torch, or in a module of its own"
        )


def _check_plain(call: Call) -> None:
    """Raise JobRefused for an argument that is no tensor and no plain value: it can be neither sent nor frozen."""
    for leaf in pytree.tree_leaves(call.arguments):
        if not (isinstance(leaf, (*PLAIN, Tensor, Value, NamedTensor)) or callable(leaf)):
            raise JobRefused(
                f"{call} (called at {call.place}) is given a {type(leaf).__name__}, and only tensors and plain values "
                "can cross a cut: cut elsewhere, or leave it out of the call"
                + (" (use_cache=False does)" if "Cache" in type(leaf).__name__ else "")
            )
