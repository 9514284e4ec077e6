"""Recorder of a forward: the model's own code runs once, on one shard's rows, and its calls are recorded.

Every call of a leaf module or of a torch function is recorded, with the values that it takes and makes.
Modules that hold no cut inside are single calls, Python and all; only those around a cut are looked into, and those
that leave a tensor somewhere else than in their result, where another call reads it: then every value has a call.
Python's own decisions there are frozen, so the record holds for one shape of input. A decision that
was read from a tensor's value is checked in every step (a guard), and so is a shape that was read.
What the record would not see is refused: randomness outside torch, tensors passed to NumPy, autocast,
hooks. An autograd Function of the user's own is one call, with its own backward.
"""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from samestep.errors import JobRefused, SamestepError
from samestep.numerics import random_streams
from samestep.parallel.cutting.births import BATCH, Births, addresses, held_by
from samestep.parallel.cutting.bonds import BACKWARDS
from samestep.parallel.cutting.recording import (
    NAMES,
    Call,
    NamedTensor,
    Recording,
    Value,
    attribute_of,
    batch_tensors,
    results_of,
)
from samestep.parallel.cutting.saved_tensors import SavedTensors, may_defer
from samestep.parallel.cutting.untouched import copy_of_batch, untouched
from samestep.parallel.cutting.windows import Window
from samestep.parallel.user_code import raised_at, user_place
from samestep.system.nests import PLAIN, Path, is_open, mapped, mapped_simply, shown, walk

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
MOST_ATTEMPTS = 100
NO_STAGES: Mapping[str, int] = MappingProxyType({})


def record(
    model: nn.Module,
    forward: Callable[[nn.Module, Any], Any],
    batch: Any,
    starts: Sequence[str],
    cuts: Collection[str],
    answers: Sequence[Any] = (),
    stages: Mapping[str, int] = NO_STAGES,
) -> Recording:
    """Run `forward(model, batch)` once on a copy of the batch and record it. The model is left as it was.

    starts: the modules at whose call a further stage begins, in order. cuts: further modules that
    must be calls of their own. answers: of the first guards, whatever the values here say. stages: of modules that
    begin a stage too, where this way through forward leaves out the one that begins it on another.
    Raises JobRefused if the forward cannot be cut.
    """
    hidden = {address for tensor in held_by(batch) for address in addresses(tensor)}
    opened: set[str] = set()
    streams = random_streams.leave()
    for _ in range(MOST_ATTEMPTS):
        random_streams.resume(streams)
        copied = copy_of_batch(batch)
        try:
            with untouched(model):
                recorder = _Recorder(model, copied, starts, {*starts, *cuts}, opened)
                recorder.hidden, recorder.answers, recorder.stages = hidden, list(answers), stages
                with recorder.active():
                    result = forward(model, copied)
                    recorder.recording.result = recorder.named(result)
        except _LookInto as found:
            opened |= found.modules
            continue
        except SamestepError:
            raise
        except Exception as error:
            random_streams.resume(streams)
            with untouched(model):
                forward(model, copy_of_batch(batch))  # what it raises by itself is the user's to see
            raise JobRefused(
                f"forward cannot be recorded at {raised_at(error)}, and runs without a record ({type(error).__name__}: "
                f"{str(error).partition(chr(10))[0][:200]}): a plan with stages or slices needs one; use --plan data"
            ) from error
        recording = recorder.recording
        recording.calls = [recorder.with_expected_shapes(call) for call in recording.calls]
        return recording
    raise AssertionError("every attempt opens a further module")


class _LookInto(BaseException):
    """The modules in which a tensor was left or read unseen. No `except Exception` of the user's stops it."""

    def __init__(self, modules: set[str]) -> None:
        super().__init__(modules)
        self.modules = modules


class _Recorder(TorchFunctionMode):
    def __init__(
        self, model: nn.Module, batch: Any, starts: Sequence[str], cuts: Collection[str], opened: Collection[str]
    ) -> None:
        super().__init__()
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._open = {"", *opened, *(name[:i] for name in _names(model, cuts) for i, c in enumerate(name) if c == ".")}
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._state = {id(tensor): name for name, tensor in reversed(state)}
        self._own = {name: id(tensor) for name, tensor in state}
        self._buffers = StateWatch(model)
        self._starts = list(starts)
        self._in_leaf = False
        self._in_function = ""  # the line at which the running autograd Function was applied
        self._autocast = _autocast()
        self._streams = random_streams.leave()
        self._shapes_read: set[int] = set()  # values
        self._values: dict[int, int] = {}
        self._saved = SavedTensors(tensor for _, tensor in state)
        self._made: list[Tensor] = []  # also keeps them alive: ids must not be used again
        self._numbered: list[
            tuple[Any, str]
        ] = []  # what every call called, also those that are not recorded, and where
        self.hidden: set[int] = set()  # addresses of memory that belongs to the batch in any way
        self.stages: Mapping[str, int] = NO_STAGES
        self.answers: list[Any] = []  # of guards still to come
        inputs = batch_tensors(batch)
        self._births = Births(inputs)
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
            if type(module) is nn.Linear and may_defer(module):
                self._saved.defer(args[0] if args else kwargs["input"], result)
            return result

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._module(module, counted, args, kwargs)

        plain_apply: Any = vars(torch.autograd.Function)["apply"]

        def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
            return self._function(plain_apply.__get__(None, function), args, kwargs)

        from_numpy = self._plain_from_numpy = torch.from_numpy
        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
        torch.from_numpy = self._from_numpy  # type: ignore[assignment]  # no mode sees it
        try:
            with self._births, self:
                yield
            self._check_surroundings("the end")
        finally:
            nn.Module.__call__ = plain  # type: ignore[method-assign]
            torch.autograd.Function.apply = plain_apply  # type: ignore[method-assign]
            torch.from_numpy = from_numpy
            self._births.undo()

    def _from_numpy(self, array: Any) -> Any:
        return self.__torch_function__(self._plain_from_numpy, (), (array,))

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
        elif name is not None and self.stages.get(name, 0) > (begun := len(self.recording.entered)):
            self.recording.entered += self._starts[begun : self.stages[name]]
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
        if name in met:  # it goes on in the stage of now; its parameters must not be used in two
            return
        at = self._starts.index(name)
        if self.stages and at >= len(met):
            met.extend(self._starts[len(met) : at])
        if name != self._starts[len(met)]:
            raise JobRefused(
                f"forward reaches {name} before {self._starts[len(met)]}: name the stages' first layers in the order "
                "in which forward calls them"
            )
        met.append(name)

    def _write(self, what: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = what if isinstance(what, str) else getattr(what, "__name__", str(what))
        place = user_place()
        self._check_surroundings(name)
        self._numbered.append((what, place))
        given = _Given((args, kwargs), self.reference)
        versions = [tensor._version for tensor in self._made]
        buffers = self._buffers.before(what, given.names)
        is_checkpointed = _is_in_checkpoint()
        number, is_backward = len(self._numbered) - 1, what in BACKWARDS if callable(what) else False
        with self._saved.counted(), self._births.during(number, given.tensors, may_read_all=is_backward):
            result = function(*args, **kwargs)
        if self._births.read:
            self._look_into({number, *self._births.read}, f"{name} (called at {place}) reads")
        self._streams = random_streams.leave()
        changed = self._changed(versions, given.tensors)
        is_guard = what in READERS if callable(what) and not isinstance(what, nn.Module) else False
        made, left = results_of(result), given.left()
        if is_guard and not made:
            result = self.answers.pop(0) if self.answers else result
        moves = self._buffers.moved(buffers)
        if not (made or left or changed or moves or is_guard or what is torch._C._set_grad_enabled):
            self._note_reading(what, given.arguments)
            return result  # a shape, a type: frozen with the Python code around it
        saved, deferrable = self._saved.take()
        call = Call(
            what,
            given.arguments,
            tuple(self._number(tensor) for tensor in [*made, *(tensor for _, tensor in left)]),
            changed,
            stage=len(self.recording.entered),
            place=place,
            saved=saved,
            deferrable=deferrable,
            opens=given.opens,
            left=tuple(path for path, _ in left),
            moves=moves,
            is_checkpointed=is_checkpointed and bool(moves),
        )
        if is_guard and not made:
            call = replace(call, expected=result, is_guard=True)
        _check_plain(call)
        self.recording.calls.append(call)
        return result

    def _changed(self, versions: Sequence[int], given: Sequence[Tensor]) -> frozenset[int]:
        """The values that a call has changed: what it wrote to, and whatever shows the same elements."""
        raised = {i for i, version in enumerate(versions) if self._made[i]._version != version}
        if not raised:
            return frozenset()
        windows = self.recording.windows
        written = {i for tensor in given if (i := self._values.get(id(tensor), -1)) in raised and i in windows}
        if not written:
            return frozenset(raised)
        return frozenset(
            i for i in range(len(versions)) if i in windows and any(windows[i].overlaps(windows[w]) for w in written)
        )

    def _look_into(self, calls: Collection[int], said: str) -> None:
        """Record anew, with the modules among `calls` opened. Raises JobRefused where none is left to open."""
        found = [self._numbered[i] for i in sorted(calls) if i >= 0]
        modules = {what for what, _ in found if isinstance(what, str)} - self._open
        if modules:
            raise _LookInto(modules)
        makers = [f"{getattr(what, '__name__', what)} at {where}" for what, where in found]
        raise JobRefused(
            f"{said} a tensor that it is not given, and that {' or '.join(makers) or 'the batch'} left behind; a cut "
            "forward would go on with the one of another batch: hand it over as argument and result"
        )

    def _note_reading(self, what: Any, arguments: Any) -> None:
        """Note the values whose shape is read by a call that makes no tensor."""
        if isinstance(what, str | nn.Module):
            return
        _check_reading(what)
        if what in SHAPES:
            self._shapes_read |= {leaf.index for _, leaf in walk(arguments, NAMES) if isinstance(leaf, Value)}

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
        """The name of a tensor in the record; other things stand for themselves, as do constants."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._values:
            return Value(self._values[id(leaf)])
        if id(leaf) in self._state:
            return NamedTensor(self._state[id(leaf)])
        maker = self._births.maker(leaf)
        if maker is not None:
            takers = range(len(self._numbered)) if maker == BATCH else (maker,)
            self._look_into(takers, f"forward uses at {user_place()}")
        if not self.hidden.isdisjoint(addresses(leaf)):
            raise JobRefused(
                f"forward uses at {user_place()} a tensor of shape {tuple(leaf.shape)} that the batch holds where it "
                "is not found (in a function or a generator): make it an item or an attribute of the batch"
            )
        return leaf

    def named(self, result: Any) -> Any:
        """What forward returns, with names for its tensors."""
        self._in_leaf = True
        try:
            return mapped(result, self.reference)
        finally:
            self._in_leaf = False

    def _number(self, tensor: Tensor) -> int:
        index = len(self._made)
        self._values[id(tensor)] = index
        self._made.append(tensor)
        self.recording.shapes[index] = tensor.shape
        self.recording.nbytes[index] = tensor.numel() * tensor.element_size()
        self.recording.storages[index] = self._saved.storage(tensor)
        if tensor.layout == torch.strided and (memory := addresses(tensor)):
            window = Window(memory[0], int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
            self.recording.windows[index] = window
        if tensor.is_floating_point() or tensor.is_complex():
            self.recording.floats.add(index)
        return index


def _names(model: nn.Module, modules: Collection[str]) -> list[str]:
    """All names of some modules: one may have two parents."""
    wanted = {id(model.get_submodule(name)) for name in modules}
    return [name for name, module in model.named_modules(remove_duplicate=False) if id(module) in wanted]


def _is_in_checkpoint() -> bool:
    """Whether torch.utils.checkpoint runs this, to run it again in backward. Buffers then change a second time."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook.")


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
    for path, leaf in walk(call.arguments, NAMES):
        if not (isinstance(leaf, (*PLAIN, *NAMES, Tensor, set, frozenset, weakref.ref)) or callable(leaf)):
            where = f" (in {shown(path[1:])})" if len(path) > 2 else ""
            raise JobRefused(
                f"{call} (called at {call.place}) is given a {type(leaf).__name__}{where}, and only tensors, plain "
                "values and objects made of these can cross a cut: cut elsewhere, or leave it out of the call"
            )


class _Given:
    """The arguments of a call, as they are before it."""

    def __init__(self, arguments: Any, reference: Callable[[Any], Any]) -> None:
        self._before, self._actual = list(walk(arguments)), arguments
        self._known = {id(leaf) for _, leaf in self._before if isinstance(leaf, Tensor)}
        self.tensors = [leaf for _, leaf in self._before if isinstance(leaf, Tensor)]
        self._snapshot = mapped(arguments, reference)
        self._plain = mapped_simply(arguments, reference)
        self.names = [leaf.name for _, leaf in walk(self._snapshot, NAMES) if isinstance(leaf, NamedTensor)]
        leaves: list[Any] = []
        mapped_simply(arguments, leaves.append)
        self.opens = any(isinstance(part, Tensor) for leaf in leaves if is_open(leaf) for _, part in walk(leaf))

    def left(self) -> list[tuple[Path, Tensor]]:
        """Tensors that the call has left in its arguments; afterwards `opens` says whether these are made anew."""
        after = list(walk(self._actual))
        found = {
            id(leaf): (path, leaf) for path, leaf in after if isinstance(leaf, Tensor) and id(leaf) not in self._known
        }
        self.opens |= bool(found) or not _same(self._before, after)
        return list(found.values())

    @property
    def arguments(self) -> Any:
        return self._snapshot if self.opens else self._plain


def _same(before: Sequence[tuple[Path, Any]], after: Sequence[tuple[Path, Any]]) -> bool:
    """Whether two walks have met the same leaves at the same places."""
    if len(before) != len(after):
        return False
    return all(
        p == q and (a is b or (isinstance(a, PLAIN) and a == b)) for (p, a), (q, b) in zip(before, after, strict=True)
    )


class StateWatch:
    """Tells which buffers a call changed. Kernels change statistics without raising a version, so bits are compared."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def before(self, what: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """Copies of the buffers that a call may change: a module's own, and those that it is given."""
        if isinstance(what, str):
            module = self._model.get_submodule(what)
            return {f"{what}.{name}": buffer.clone() for name, buffer in module.named_buffers(remove_duplicate=False)}
        named = {name: attribute_of(self._model, name) for name in names}
        return {name: tensor.clone() for name, tensor in named.items() if not isinstance(tensor, nn.Parameter)}

    def moved(self, before: dict[str, Tensor]) -> frozenset[str]:
        now = {name: attribute_of(self._model, name) for name in before}
        return frozenset(n for n, b in before.items() if now[n].shape != b.shape or not torch.equal(now[n], b))
