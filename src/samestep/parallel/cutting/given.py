"""Arguments of a recorded call, as they are before it, and what the call does to them and to buffers."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.parallel.cutting.recording import NAMES, Call, NamedTensor, attribute_of
from samestep.system.nests import PLAIN, Path, is_open, mapped, mapped_simply, shown, walk


class Given:
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


def check_plain(call: Call) -> None:
    """Raise JobRefused for an argument that is no tensor and no plain value: it can be neither sent nor frozen."""
    for path, leaf in walk(call.arguments, NAMES):
        if not (isinstance(leaf, (*PLAIN, *NAMES, Tensor, set, frozenset, weakref.ref)) or callable(leaf)):
            where = f" (in {shown(path[1:])})" if len(path) > 2 else ""
            raise JobRefused(
                f"{call} (called at {call.place}) is given a {type(leaf).__name__}{where}, and only tensors, plain "
                "values and objects made of these can cross a cut: cut elsewhere, or leave it out of the call"
            )
