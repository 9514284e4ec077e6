"""Recorded forward: a list of calls, which can be cut between any two and performed again.

    h = self.embed(x)            0 = module embed (input 0)
    for block in self.blocks:    1 = module blocks.0 (0)
        h = block(h)             2 = module blocks.1 (1)
    return h.mean(1)             3 = Tensor.mean (2, 1)

The kernels called, and their order, are those of the uncut forward: autograd's sums keep their bits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.errors import JobRefused
from samestep.parallel.cutting.windows import Window
from samestep.system.nests import Path, at, mapped, mapped_simply, tensors_of, walk


@dataclass(frozen=True)
class Storage:
    """Memory of a tensor, or of several that share it."""

    number: int
    nbytes: int


@dataclass(frozen=True)
class SavedForBackward:
    """Tensors that a leaf module inside a call, or the functions between two, save for backward; in forward's order."""

    storages: tuple[Storage, ...]
    gradients: int  # bytes of the gradients of outputs and inputs, which its backward holds at once
    rearranged: int = 0  # bytes of a convolution's inputs and outputs in the kernel's own layout


@dataclass(frozen=True)
class Value:
    """The i-th tensor of a forward, in order of creation; the batch's tensors come first."""

    index: int


@dataclass(frozen=True)
class NamedTensor:
    """A parameter or buffer that the code around the leaf modules uses directly."""

    name: str


NAMES = (Value, NamedTensor)


@dataclass(frozen=True)
class Call:
    """One call, with all that it takes to perform it again."""

    what: str | Callable[..., Any]  # a leaf module's name, or a function
    arguments: Any  # (args, kwargs) with Value and NamedTensor for tensors
    makes: tuple[int, ...]  # the values of the result's tensors, in the order of its leaves, then those of `left`
    changes: frozenset[int]  # the values whose memory it changes in place, at least in part
    stage: int
    place: str  # file:line of the code that calls
    expected: Any = None  # result of a guard
    is_guard: bool = False
    expected_shapes: tuple[torch.Size | None, ...] = ()  # of its results, where forward may have decided on the shape
    saved: tuple[SavedForBackward, ...] = ()  # besides the model's own state
    deferrable: tuple[tuple[Storage, int], ...] = ()  # input, and bytes of y, of each Linear that may defer dW
    opens: bool = False  # whether its arguments hold objects with tensors, which are made anew for every call
    left: tuple[Path, ...] = ()  # where in its arguments it leaves tensors, as a cache's update does
    moves: frozenset[str] = frozenset()  # the buffers that it changes
    is_checkpointed: bool = False  # whether torch.utils.checkpoint computes it again in backward

    @property
    def saved_storages(self) -> tuple[Storage, ...]:
        """Storages that it saves for its backward, each once."""
        return tuple(dict.fromkeys(storage for part in self.saved for storage in part.storages))

    @cached_property
    def takes(self) -> frozenset[int]:
        return frozenset(leaf.index for leaf in self._leaves() if isinstance(leaf, Value))

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the parameters and buffers that it uses directly."""
        return frozenset(leaf.name for leaf in self._leaves() if isinstance(leaf, NamedTensor))

    def _leaves(self) -> Iterator[Any]:
        return (leaf for _, leaf in walk(self.arguments, NAMES))

    def __str__(self) -> str:
        return self.what if isinstance(self.what, str) else getattr(self.what, "__name__", str(self.what))


@dataclass
class Recording:
    """Calls of a forward for a batch of one signature."""

    num_inputs: int  # the batch's tensors are values 0 .. num_inputs - 1
    calls: list[Call]
    result: Any  # what forward returns, with Value for tensors
    entered: list[str]  # the first modules of the stages after the first, as they were met
    shapes: dict[int, torch.Size] = field(default_factory=dict)
    nbytes: dict[int, int] = field(default_factory=dict)
    storages: dict[int, Storage] = field(default_factory=dict)
    windows: dict[int, Window] = field(default_factory=dict)
    floats: set[int] = field(default_factory=set)  # values that may have a gradient


def batch_tensors(batch: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors_of(batch)]


class OtherAnswer(JobRefused):
    """A guard that answers otherwise than in the recording; `answer` is what it found."""

    def __init__(self, call: Call, answer: Any) -> None:
        super().__init__(
            f"forward asks for a tensor's value at {call.place} and found {call.expected!r} when it was cut, "
            f"{answer!r} now: a cut forward takes the same way every time; cut elsewhere, or compute without if"
        )
        self.call, self.answer = call, answer


def perform(call: Call, values: dict[int, Tensor], model: nn.Module) -> None:
    """Perform a recorded call: take its inputs from `values`, and put its results there."""

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return values[leaf.index]
        return attribute_of(model, leaf.name) if isinstance(leaf, NamedTensor) else leaf

    if call.opens:
        args, kwargs = mapped(call.arguments, resolve, NAMES)
    else:
        args, kwargs = mapped_simply(call.arguments, resolve)
    function = model.get_submodule(call.what) if isinstance(call.what, str) else call.what
    if call.is_checkpointed:
        result = checkpoint(function, *args, use_reentrant=False, **kwargs)
    else:
        result = function(*args, **kwargs)
    if call.is_guard:
        if result != call.expected:
            raise OtherAnswer(call, result)
        return
    made = results_of(result)
    _check_shapes(call, made)
    made += [at((args, kwargs), path) for path in call.left]
    values.update(zip(call.makes, made, strict=True))


def results_of(result: Any) -> list[Tensor]:
    """The tensors that a call returns, also in objects, in a fixed order."""
    if isinstance(result, Tensor):
        return [result]
    if type(result) is tuple and all(isinstance(leaf, Tensor) for leaf in result):
        return list(result)
    return [leaf for _, leaf in walk(result) if isinstance(leaf, Tensor)]


def _check_shapes(call: Call, made: Sequence[Tensor]) -> None:
    """Raise JobRefused when a decision that forward took on shapes would now be another one."""
    count = len(call.makes) - len(call.left)
    if len(made) != count:
        found, expected = f"{len(made)} tensors", f"{count}"
    else:
        wrong = [
            (t.shape, s) for t, s in zip(made, call.expected_shapes, strict=False) if s is not None and s != t.shape
        ]
        if not wrong:
            return
        found, expected = (str(tuple(shape)) for shape in wrong[0])
    raise JobRefused(
        f"{call} (called at {call.place}) gives {found}, and gave {expected} when forward was cut, and forward asked "
        "for that: a cut forward takes the same way every time; compute with masks and torch.sum instead of sizes"
    )


def attribute_of(model: nn.Module, name: str) -> Any:
    """The parameter, buffer or other attribute of a dotted name."""
    prefix, _, local = name.rpartition(".")
    return getattr(model.get_submodule(prefix), local)
