"""Memory that recorded calls save for backward."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from samestep.parallel.cutting.births import memory_of
from samestep.parallel.cutting.recording import SavedForBackward, Storage
from samestep.system.nests import tensors_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SavedTensors:
    """Counter of the memory that calls save for backward."""

    def __init__(self, state: Iterable[Tensor]) -> None:
        self._state = {memory.data_ptr() for tensor in state for memory in memory_of(tensor)}
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
        tensors = [tensor for _, tensor in tensors_of((arguments, result))]
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
        """The tensor's memory; a sparse one is taken as having one piece."""
        parts = memory_of(tensor)
        address = parts[0].data_ptr() if parts else id(tensor)
        return Storage(self._numbers.setdefault(address, len(self._numbers)), sum(part.nbytes() for part in parts))

    def _note(self, tensor: Tensor) -> Tensor:
        if not self._state.issuperset(memory.data_ptr() for memory in memory_of(tensor)):
            self._now[self.storage(tensor)] = None
        return tensor.detach()  # an operation that saves its own output would otherwise keep itself alive for ever


def may_defer(linear: nn.Linear) -> bool:
    """True if backward could defer the gradient of its weight (`linear.py`)."""
    return linear.weight.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
