"""Tensors of a recorded forward: which call made each, and under what name the record knows it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.parallel.cutting.births import BATCH, Births, addresses
from samestep.parallel.cutting.recording import NamedTensor, Recording, Value, batch_tensors, results_of
from samestep.parallel.cutting.saved_tensors import SavedTensors
from samestep.parallel.cutting.untouched import MANAGED
from samestep.parallel.cutting.windows import Window
from samestep.parallel.user_code import user_place
from samestep.system.nests import mapped, shown, tensors_of


class LookInto(BaseException):
    """The modules in which a tensor was left or read unseen. No `except Exception` of the user's stops it."""

    def __init__(self, modules: set[str]) -> None:
        super().__init__(modules)
        self.modules = modules


class Surroundings:
    """Memory outside of calls that a record must not take for constant."""

    def __init__(self, hidden: set[int], left: Mapping[int, str]) -> None:
        self.hidden = hidden  # addresses of what belongs to the batch in any way
        self.left = left  # addresses of what an earlier batch has left on modules, and where


class RecordedValues:
    """The numbered tensors of one pass through forward; they are kept alive, as ids must not be used again."""

    def __init__(self, model: nn.Module, batch: Any, opened: Collection[str], around: Surroundings) -> None:
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._state = {id(tensor): name for name, tensor in reversed(state)}
        self._open, self._around = set(opened), around
        self._values: dict[int, int] = {}
        self._made: list[Tensor] = []
        self._numbered: list[tuple[Any, str]] = []  # what every call called, and where; also those not recorded
        inputs = batch_tensors(batch)
        self.births = Births(inputs)
        self.saved = SavedTensors(tensor for _, tensor in state)
        self.recording = Recording(len(inputs), [], None, [])
        for tensor in inputs:
            self.number(tensor)

    def begin(self, what: Any, place: str) -> int:
        """The number of a call that begins."""
        self._numbered.append((what, place))
        return len(self._numbered) - 1

    def versions(self) -> list[int]:
        return [tensor._version for tensor in self._made]

    def check_read(self, number: int, call: str, place: str) -> None:
        """Look into the modules between which a tensor went that the call was not given, or refuse it."""
        if found := self.births.constants_read & self._around.left.keys():
            raise JobRefused(
                f"{call} (called at {place}) uses {self._around.left[found.pop()]}, a tensor that an earlier batch "
                "left there; which one that is depends on who computes which shards: make it a buffer, or use "
                "--plan data"
            )
        if self.births.read:
            self._look_into({number, *self.births.read}, f"{call} (called at {place}) reads")

    def changed(self, versions: Sequence[int], given: Sequence[Tensor]) -> frozenset[int]:
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
            raise LookInto(modules)
        makers = [f"{getattr(what, '__name__', what)} at {where}" for what, where in found]
        raise JobRefused(
            f"{said} a tensor that it is not given, and that {' or '.join(makers) or 'the batch'} left behind; a cut "
            "forward would go on with the one of another batch: hand it over as argument and result"
        )

    def reference(self, leaf: Any) -> Any:
        """The name of a tensor in the record; other things stand for themselves, as do constants."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._values:
            return Value(self._values[id(leaf)])
        if id(leaf) in self._state:
            return NamedTensor(self._state[id(leaf)])
        maker = self.births.maker(leaf)
        if maker is not None:
            takers = range(len(self._numbered)) if maker == BATCH else (maker,)
            self._look_into(takers, f"forward uses at {user_place()}")
        if not self._around.hidden.isdisjoint(addresses(leaf)):
            raise JobRefused(
                f"forward uses at {user_place()} a tensor of shape {tuple(leaf.shape)} that the batch holds where it "
                "is not found (in a function or a generator): make it an item or an attribute of the batch"
            )
        return leaf

    def named(self, result: Any) -> Any:
        """The result of forward, with names for its tensors."""
        return mapped(result, self.reference)

    def check_loss(self, settle: Callable[[Any, Any, int], Any] | None, result: Any, batch: Any) -> None:
        """Compute the loss. Raises JobRefused if it uses a tensor that forward made and did not return."""
        if settle is None:
            return
        number = self.begin("the loss", "")
        given = results_of((result, batch))
        with self.births.during(number, given), suppress(Exception):  # what the loss raises, it will raise again
            settle(result, batch, 1)
        if makers := [self._numbered[i] for i in sorted(self.births.read) if i >= 0]:
            what, place = makers[0]
            raise JobRefused(
                f"the loss uses a tensor that {getattr(what, '__name__', what)} (called at {place}) left behind and "
                "that forward does not return: return it, and the loss with it (forward= instead of loss=)"
            )

    def left_behind(self, model: nn.Module) -> dict[int, str]:
        """Memory, with its place, that forward has left on modules and that depends on the batch or on weights."""
        found: dict[int, str] = {}
        for prefix, module in model.named_modules():
            for name, value in vars(module).items():
                if name in MANAGED:
                    continue
                for path, tensor in tensors_of(value):
                    if self.births.depends(tensor):
                        place = f"{prefix}.{name}{shown(path)}" if prefix else f"{name}{shown(path)}"
                        found |= dict.fromkeys(addresses(tensor), place)
        return found

    def number(self, tensor: Tensor) -> int:
        index = len(self._made)
        self._values[id(tensor)] = index
        self._made.append(tensor)
        self.recording.shapes[index] = tensor.shape
        self.recording.nbytes[index] = tensor.numel() * tensor.element_size()
        self.recording.storages[index] = self.saved.storage(tensor)
        if tensor.layout == torch.strided and (memory := addresses(tensor)):
            window = Window(memory[0], int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
            self.recording.windows[index] = window
        if tensor.is_floating_point() or tensor.is_complex():
            self.recording.floats.add(index)
        return index
