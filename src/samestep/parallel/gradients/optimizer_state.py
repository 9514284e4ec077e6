"""The state of a worker's optimizer, piece by piece: what digests, checkpoints and comparisons are made from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from samestep.errors import JobRefused
from samestep.parallel.gradients.layout import Entry, Piece, storage_order


@dataclass(frozen=True)
class OptimizerState:
    """The state of an optimizer over pieces of parameters."""

    optimizer: optim.Optimizer
    targets: Sequence[tuple[Piece, nn.Parameter]]

    def pieces(self) -> Iterator[tuple[Piece, str, str, Tensor]]:
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
        """Put back what `pieces` gave."""
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


def cut_state(state: dict[str, Any], entry: Entry, piece: Piece, target: Tensor) -> dict[str, Any]:
    """The part of a parameter's state that belongs to one piece of it."""

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
