"""List of operations that make a model: `lazy_record.py` records it, `lazy_replay.py` runs it.

The list names storages, not tensors: an argument is recorded as (storage, dtype, shape, strides,
offset), so views, `.data`, `detach` and tied parameters need no bookkeeping of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samestep.parallel.lazy_init.draws import Draw


@dataclass(frozen=True)
class TensorView:
    """A tensor of the list: elements of a numbered storage."""

    storage: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return self.shape.numel()

    @property
    def is_dense(self) -> bool:
        expected = 1
        for n, stride in sorted(zip(self.shape, self.stride, strict=True), key=lambda d: (d[1], d[0])):
            if n != 1 and stride != expected:
                return False
            expected *= n
        return True

    @property
    def is_contiguous(self) -> bool:
        """True if its elements are in memory row by row."""
        return self.is_dense and self.stride == torch.empty(self.shape, device="meta").stride()

    def of(self, storage: torch.UntypedStorage, start: int = 0) -> Tensor:
        """The tensor of these elements, in a storage that begins at byte `start` of the memory given."""
        begin, rest = divmod(start, self.dtype.itemsize)
        assert rest == 0, "a tensor's memory begins at a multiple of its element"
        return torch.empty(0, dtype=self.dtype).set_(storage, begin + self.offset, self.shape, self.stride)

    @property
    def end(self) -> int:
        """The first byte of the storage after the last element."""
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.stride, strict=True))
        return (self.offset + last + 1) * self.dtype.itemsize if self.numel else 0


@dataclass
class Operation:
    """One operation of the list."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    reads: Sequence[TensorView]
    writes: Sequence[TensorView]
    overwrites: Sequence[TensorView]  # those of `writes` whose previous elements it does not read
    overwritten: set[int]  # the storages that it overwrites completely
    outputs: Sequence[TensorView | None]
    draw: Draw | None  # if it is random
    default_dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
