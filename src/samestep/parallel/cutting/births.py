"""Births: which call of a recorded forward made each piece of memory, and what a call reads without being given it.

Every operation inside a call passes by here, also those of modules that are recorded as single calls. A tensor that a
layer leaves on itself, in a closure or in a list is so told from a constant: its memory was born while forward ran.
"""

import gc
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH, AROUND = -1, -2  # the batch's own memory was born before all calls; code around the calls shows no memory
MOST_HELD = 100_000  # objects that are looked at for tensors that a batch hides


class Births(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls are numbered by who records; inside a call, `read` fills with the calls whose memory it was not given."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, for a second, to keep it out of the method below

    def __init__(self, batch: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: set[int] = set()
        self.constants_read: set[int] = set()  # addresses of memory older than forward that the call reads
        self._depending: set[int] = set()  # addresses of memory that was computed from the batch or from weights
        self._born: dict[int, tuple[StorageWeakRef, int]] = {}  # a weak reference keeps an address from being used anew
        self._call: int | None = None
        self._given: set[int] = set()
        self._may_read_all = False
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}  # changed in place, and as they were
        for tensor in batch:
            self._note(tensor, BATCH)
        self._depending |= self._born.keys()

    @contextmanager
    def during(self, call: int, given: Iterable[Tensor], *, may_read_all: bool = False) -> Iterator[None]:
        """Inside, `call` runs. may_read_all: backward does, of the graph that it goes through."""
        self._given = {number for tensor in given for number in addresses(tensor)}
        self._call, self._may_read_all, self.read = call, may_read_all, set()
        self.constants_read = set()
        try:
            yield
        finally:
            self._call = None

    def maker(self, tensor: Tensor) -> int | None:
        """The call that made a tensor's memory; None for a constant."""
        found = (self._born.get(number) for number in addresses(tensor))
        return next((born[1] for born in found if born is not None), None)

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor was born while forward ran, and computed from the batch, from weights, or at random."""
        return not self._depending.isdisjoint(addresses(tensor))

    def undo(self) -> None:
        """Give constants that forward changed in place, such as counters that are no buffers, their values back."""
        with torch.no_grad():
            for tensor, before in self._constants.values():
                tensor.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {number for tensor in taken for number in addresses(tensor)}
        if self._call is not None and not self._may_read_all:
            makers = {self._born[number][1] for number in known - self._given if number in self._born}
            self.read |= makers - {self._call}
            self.constants_read |= known - self._born.keys()
        if func._schema.is_mutable:
            self._keep(func, args, kwargs)
        result = func(*args, **kwargs)
        of_batch = (known & self._depending) or any(tensor.requires_grad for tensor in taken)
        depends = of_batch or torch.Tag.nondeterministic_seeded in func.tags
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not known.issuperset(addresses(leaf)):
                self._note(leaf, AROUND if self._call is None else self._call)
            if isinstance(leaf, Tensor) and depends:
                self._depending.update(n for n in addresses(leaf) if n in self._born)
        return result

    def _note(self, tensor: Tensor, call: int) -> None:
        for storage in memory_of(tensor):
            self._born.setdefault(storage._cdata, (StorageWeakRef(storage), call))  # type: ignore[no-untyped-call]

    def _keep(self, func: Any, args: Any, kwargs: Any) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name)):
                if isinstance(tensor, Tensor) and not any(n in self._born for n in addresses(tensor)):
                    self._constants.setdefault(id(tensor), (tensor, tensor.detach().clone()))


def memory_of(tensor: Tensor) -> list[torch.UntypedStorage]:
    """The pieces of memory of a tensor; those of its parts where it is sparse."""
    if tensor.layout == torch.strided:
        try:
            return [tensor.untyped_storage()]
        except (NotImplementedError, RuntimeError):  # a wrapper around tensors
            return []
    if tensor.layout == torch.sparse_coo:
        return [part.untyped_storage() for part in (tensor._indices(), tensor._values())]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = tensor.crow_indices(), tensor.col_indices(), tensor.values()
        return [part.untyped_storage() for part in parts]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = tensor.ccol_indices(), tensor.row_indices(), tensor.values()
        return [part.untyped_storage() for part in parts]
    return []


def addresses(tensor: Tensor) -> list[int]:
    return [storage._cdata for storage in memory_of(tensor)]


def held_by(value: Any) -> list[Tensor]:
    """The tensors that can be reached from a value in any way: closures, generators, what types in C hold."""
    found, met, left = list[Tensor](), set[int](), [value]
    while left and len(met) < MOST_HELD:
        one = left.pop()
        if id(one) in met or isinstance(one, type | types.ModuleType | nn.Module | types.CodeType):
            continue
        met.add(id(one))
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, types.FunctionType):
            left += [*(one.__closure__ or ()), one.__defaults__, one.__kwdefaults__]  # not its module's globals
        elif isinstance(one, types.GeneratorType):
            left += list(one.gi_frame.f_locals.values()) if one.gi_frame else []
        else:
            left += gc.get_referents(one)
    return found
