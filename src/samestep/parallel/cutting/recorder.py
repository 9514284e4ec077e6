"""Recorder of a forward: the model's own code runs once, on one shard's rows, and its calls are recorded.

Every call of a leaf module or of a torch function is recorded, with the values that it takes and makes.
Modules that hold no cut inside are single calls, Python and all; only those around a cut are looked into, and those
that leave a tensor somewhere else than in their result, where another call reads it: then every value has a call.
Python's own decisions there are frozen, so the record holds for one shape of input. A decision that
was read from a tensor's value is checked in every step (a guard), and so is a shape that was read.
What the record would not see is refused: randomness outside torch, tensors passed to NumPy, autocast,
hooks. An autograd Function of the user's own is one call, with its own backward.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from samestep.errors import JobRefused, SamestepError
from samestep.numerics import random_streams
from samestep.parallel.cutting.births import addresses, held_by
from samestep.parallel.cutting.bonds import BACKWARDS
from samestep.parallel.cutting.given import Given, StateWatch, check_plain
from samestep.parallel.cutting.recording import NAMES, Call, Recording, Value, results_of
from samestep.parallel.cutting.saved_tensors import may_defer
from samestep.parallel.cutting.transforms import transform_running
from samestep.parallel.cutting.untouched import copy_of_batch, untouched
from samestep.parallel.cutting.values import LookInto, RecordedValues, Surroundings
from samestep.parallel.user_code import raised_at, user_place
from samestep.system.nests import walk

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
    settle: Callable[[Any, Any, int], Any] | None = None,
) -> Recording:
    """Run `forward(model, batch)` once on a copy of the batch and record it. The model is left as it was.

    starts: the modules at whose call a further stage begins, in order. cuts: further modules that
    must be calls of their own. answers: of the first guards, whatever the values here say. stages: of modules that
    begin a stage too, where this way through forward leaves out the one that begins it on another. settle: what
    follows with the result and the batch (and a number of rows), and may use nothing else of forward's.
    Raises JobRefused if the forward cannot be cut.
    """
    hidden = {address for tensor in held_by(batch) for address in addresses(tensor)}
    opened = {"", *(name[:i] for name in _names(model, {*starts, *cuts}) for i, c in enumerate(name) if c == ".")}
    streams = random_streams.leave()

    def passed(left: Mapping[int, str]) -> tuple[_Recorder, RecordedValues]:
        """Go through forward once. left: memory that an earlier batch has left on modules, and where."""
        random_streams.resume(streams)
        copied = copy_of_batch(batch)
        values = RecordedValues(model, copied, opened, Surroundings(hidden, left))
        recorder = _Recorder(model, values, opened, Stages(starts, stages))
        recorder.answers = list(answers)
        with recorder.active():
            result = forward(model, copied)
            with recorder.paused():
                values.recording.result = values.named(result)
                values.check_loss(settle, result, copied)
        return recorder, values

    for _ in range(MOST_ATTEMPTS):
        try:
            with _Recorder.one_at_a_time, untouched(model):
                recorder, values = passed({})
                if left := values.left_behind(model):
                    passed(left)
        except LookInto as found:
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
        recording = values.recording
        recording.calls = [recorder.with_expected_shapes(call) for call in recording.calls]
        return recording
    raise AssertionError("every attempt opens a further module")


@dataclass(frozen=True)
class Stages:
    """The modules at which stages begin."""

    starts: Sequence[str]
    others: Mapping[str, int]  # the stage of modules that begin one too, where forward leaves out its first

    def enter(self, name: str, entered: list[str]) -> None:
        """Note the stages that begin with the call of a module. Raises JobRefused for those out of order."""
        begun = len(entered)
        if name in entered:  # it goes on in the stage of now; its parameters must not be used in two
            return
        if name not in self.starts:
            entered += self.starts[begun : self.others.get(name, 0)]
            return
        if self.others:
            entered += self.starts[begun : self.starts.index(name)]
        if name != self.starts[len(entered)]:
            raise JobRefused(
                f"forward reaches {name} before {self.starts[len(entered)]}: name the stages' first layers in the "
                "order in which forward calls them"
            )
        entered.append(name)


class _Recorder(TorchFunctionMode):
    one_at_a_time = threading.RLock()  # what it puts in place is there for all threads of the process

    def __init__(self, model: nn.Module, values: RecordedValues, opened: Collection[str], stages: Stages) -> None:
        super().__init__()
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._own = {name: id(param) for name, param in model.named_parameters(remove_duplicate=False)}
        self._open, self._stages, self._values = set(opened), stages, values
        self.recording = values.recording
        self._buffers = StateWatch(model)
        self._in_leaf = False
        self._in_function = ""  # the line at which the running autograd Function was applied
        self._autocast = _autocast()
        self._streams = random_streams.leave()
        self._shapes_read: set[int] = set()  # values
        self.answers: list[Any] = []  # of guards still to come

    @contextmanager
    def active(self) -> Iterator[None]:
        plain, thread = nn.Module.__call__, threading.get_ident()

        def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = plain(module, *args, **kwargs)
            if not module._modules:
                self._values.saved.end_of_leaf(module, (args, kwargs), result)
            if type(module) is nn.Linear and may_defer(module):
                self._values.saved.defer(args[0] if args else kwargs["input"], result)
            return result

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return plain(module, *args, **kwargs)
            return self._module(module, counted, args, kwargs)

        plain_apply: Any = vars(torch.autograd.Function)["apply"]

        def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return plain_apply.__get__(None, function)(*args, **kwargs)
            return self._function(plain_apply.__get__(None, function), args, kwargs)

        from_numpy = self._plain_from_numpy = torch.from_numpy
        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
        torch.from_numpy = lambda a: (self._from_numpy if threading.get_ident() == thread else from_numpy)(a)  # type: ignore[assignment]  # no mode sees it
        try:
            with self._values.births, self:
                yield
            self._check_surroundings("the end")
        finally:
            nn.Module.__call__ = plain  # type: ignore[method-assign]
            torch.autograd.Function.apply = plain_apply  # type: ignore[method-assign]
            torch.from_numpy = from_numpy
            self._values.births.undo()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is recorded."""
        self._in_leaf = True
        try:
            yield
        finally:
            self._in_leaf = False

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
        if name is not None:
            self._stages.enter(name, self.recording.entered)
        if name in self._open:
            return plain(module, *args, **kwargs)
        self._in_leaf = True
        try:
            what = module if name is None else name
            return self._write(what, lambda *a, **k: plain(module, *a, **k), args, kwargs)
        finally:
            self._in_leaf = False

    def _write(self, what: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = what if isinstance(what, str) else getattr(what, "__name__", str(what))
        place, values = user_place(), self._values
        self._check_surroundings(name)
        number = values.begin(what, place)
        given, versions = Given((args, kwargs), values.reference), values.versions()
        buffers = self._buffers.before(what, given.names)
        is_checkpointed = _is_in_checkpoint()
        is_backward = what in BACKWARDS if callable(what) else False
        with values.saved.counted(), values.births.during(number, given.tensors, may_read_all=is_backward):
            result = function(*args, **kwargs)
        values.check_read(number, name, place)
        self._streams = random_streams.leave()
        changed = values.changed(versions, given.tensors)
        is_guard = what in READERS if callable(what) and not isinstance(what, nn.Module) else False
        made, left = results_of(result), given.left()
        if is_guard and not made:
            result = self.answers.pop(0) if self.answers else result
        moves = self._buffers.moved(buffers)
        if not (made or left or changed or moves or is_guard or what is torch._C._set_grad_enabled):
            self._note_reading(what, given.arguments)
            return result  # a shape, a type: frozen with the Python code around it
        saved, deferrable = self._values.saved.take()
        call = Call(
            what,
            given.arguments,
            tuple(values.number(tensor) for tensor in [*made, *(tensor for _, tensor in left)]),
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
        check_plain(call)
        self.recording.calls.append(call)
        return result

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
        if transform := transform_running():
            raise JobRefused(
                f"forward calls {before} inside of {transform} (at {user_place()}), where a cut cannot look: do it "
                "in a module of its own, or use --plan data"
            )
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
