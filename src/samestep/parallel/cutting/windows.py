"""Windows: which elements of a piece of memory a tensor shows. Views of one tensor have windows on the same memory."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    memory: int  # number of the piece of memory
    offset: int  # elements
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> range:
        """From the first element that it may show to the last."""
        if 0 in self.size:
            return range(self.offset, self.offset)
        return range(
            self.offset, 1 + self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        )

    def overlaps(self, other: "Window") -> bool:
        """Whether both show an element, exactly."""
        start, stop = max(self.span.start, other.span.start), min(self.span.stop, other.span.stop)
        if self.memory != other.memory or start >= stop:
            return False
        return bool((self._shown() & other._shown(self.span))[start - self.span.start : stop - self.span.start].any())

    def covers(self, other: "Window") -> bool:
        """Whether it shows all that the other one shows, and lies in memory as its copy would."""
        span, inner = self.span, other.span
        if self.memory != other.memory or inner.start < span.start or inner.stop > span.stop:
            return False
        copied = torch.empty_strided(self.size, self.stride, device="meta").clone().stride() == self.stride
        return copied and bool(self._shown()[other._shown(span)].all())

    def _shown(self, over: range | None = None) -> Tensor:
        """One bool per element of a stretch of memory."""
        over = self.span if over is None else over
        whole = torch.zeros(max(over.stop, self.span.stop), dtype=torch.bool)
        whole.as_strided(self.size, self.stride, self.offset).fill_(True)
        return whole[over.start : over.stop]


def view_of(base: Tensor, window: Window, other: Window) -> Tensor:
    """View of a copy of what `window` shows, on what `other` shows."""
    return base.as_strided(other.size, other.stride, base.storage_offset() + other.offset - window.offset)
