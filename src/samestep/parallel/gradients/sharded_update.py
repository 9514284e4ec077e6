"""The sharded update: every worker updates the pieces it owns, with the user's own optimizer.

The optimizer is built over the real parameters (so that `p.ndim >= 2` groups work) and then handed
the worker's pieces in their stead: a whole parameter itself, or a 1-D slice of it. Elementwise
optimizers give the same bits either way, because cuts lie on the 32,768-element grid. Its state thus
exists once over all workers (ZeRO stage 1, Rajbhandari et al. 2020).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from samestep.errors import JobRefused
from samestep.parallel.gradients.layout import (
    Entry,
    Layout,
    Piece,
    storage_order,
)


class ShardedUpdate:
    """The optimizer of one worker, over its pieces."""

    def __init__(self, optimizer: optim.Optimizer, layout: Layout, pieces: Sequence[Piece]) -> None:
        self.optimizer = optimizer
        self.targets: list[tuple[Piece, nn.Parameter]] = [(p, _target(layout, p)) for p in pieces]
        entries_of: dict[int, list[int]] = {}
        for i, entry in layout.owners():
            entries_of.setdefault(id(entry.whole), []).append(i)
        targets: dict[int, list[tuple[Piece, nn.Parameter]]] = {}
        for piece, target in self.targets:
            targets.setdefault(piece.entry, []).append((piece, target))
        old_state, optimizer.state = optimizer.state, type(optimizer.state)(dict)
        self.group_names: list[list[str]] = []
        for group in optimizer.param_groups:
            entries = [i for param in group["params"] for i in entries_of.get(id(param), ())]
            self.group_names.append([layout.entries[i].name for i in entries])
            for i in entries:
                whole = layout.entries[i].whole
                for piece, target in targets.get(i, ()):
                    if whole in old_state:  # Adagrad makes its state at once
                        optimizer.state[target] = _cut_state(old_state[whole], layout.entries[i], piece, target)
            group["params"] = [target for i in entries for _, target in targets.get(i, ())]

    def step(self, gradient_of: Callable[[Piece], Tensor | None]) -> None:
        """Update every owned piece that has a gradient."""
        for piece, target in self.targets:
            grad = gradient_of(piece)
            target.grad = None if grad is None else grad.as_strided(target.shape, target.stride())
        self.optimizer.step()
        for _, target in self.targets:
            target.grad = None

    def state(self) -> Iterator[tuple[Piece, str, str, Tensor]]:
        """(piece, kind, key, value) of the optimizer's state. Values of kind `elementwise` are 1-D and
        cut as the piece is; of kind `tensor` whole; `int` and `float` are plain numbers, 0-dim here."""
        for piece, target in self.targets:
            for key, value in sorted(self.optimizer.state.get(target, {}).items()):
                if isinstance(value, Tensor) and value.shape == target.shape and value.dim() > 0:
                    yield piece, "elementwise", key, storage_order(value)
                elif isinstance(value, Tensor):
                    yield piece, "tensor", key, value
                elif isinstance(value, int | float):
                    yield piece, type(value + 0).__name__, key, torch.tensor(value, dtype=torch.float64)
                else:
                    raise JobRefused(
                        f"{type(self.optimizer).__name__} keeps {key!r} as a {type(value).__name__}, which a digest "
                        "and a checkpoint cannot hold without pickle: keep tensors and numbers in its state"
                    )

    def restore(self, piece: Piece, kind: str, key: str, value: Tensor) -> None:
        """Put back what `state` gave."""
        target = next(target for owned, target in self.targets if owned == piece)
        restored: Any = value.clone()
        if kind == "elementwise" or self._counts_on_device:
            restored = restored.to(target.device)
        if kind == "elementwise":
            restored = restored.as_strided(target.shape, target.stride())
        elif kind in ("int", "float"):
            restored = {"int": int, "float": float}[kind](value)
        self.optimizer.state[target][key] = restored

    @property
    def _counts_on_device(self) -> bool:
        """Whether the optimizer keeps its step counters with the parameters; most keep them on the CPU."""
        return any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)

    def hyperparameters(self) -> list[dict[str, Any]]:
        """Everything in the parameter groups but the parameters."""
        return [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]


def _target(layout: Layout, piece: Piece) -> nn.Parameter:
    param = layout.entries[piece.entry].param
    if piece.stop - piece.start == param.numel():
        return param
    return nn.Parameter(storage_order(param.data)[piece.start : piece.stop])


def _cut_state(state: dict[str, Any], entry: Entry, piece: Piece, target: Tensor) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.shape != entry.whole.shape or value.dim() == 0:
            return value.clone()  # a step counter: pieces of one parameter must not count together
        if entry.along is not None:
            dim, start, stop = entry.along
            value = value.narrow(dim, start, stop - start).contiguous()
        return (
            storage_order(value)[piece.start : piece.stop]
            .clone()
            .as_strided(target.shape, target.stride())
            .to(target.device)
        )

    return {key: cut(value) for key, value in state.items()}
