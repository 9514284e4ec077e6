"""Parcels: several stretches of memory as one message between two workers.

Small ones share a message, since each costs about 0.1 ms however short it is; a parcel of one stretch
is sent from its memory and received into that of its stretch, without a copy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samestep.transport.links import Links, Pending

LARGEST = 1 << 20  # bytes that share a parcel
ALIGN = 16  # bytes between which a stretch may start in one


@dataclass
class Parcel:
    """views: 1-D uint8, of the memory that is sent or filled; the same sizes in the same order on both sides."""

    peer: int
    tag: int
    views: Sequence[Tensor]
    _packed: Tensor | None = field(default=None, repr=False)
    _pending: Pending | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        return sum(padded(len(view)) for view in self.views) if len(self.views) > 1 else len(self.views[0])

    def post(self, links: Links) -> None:
        packed = self._whole()
        for part, view in zip(self._parts(packed), self.views, strict=True):
            if part.data_ptr() != view.data_ptr():
                part.copy_(view)
        self._pending = links.post(packed, self.peer, self.tag)

    def expect(self, links: Links) -> None:
        self._pending = links.expect(self._whole(), self.peer, self.tag)

    def wait(self) -> None:
        """Wait until it is sent."""
        assert self._pending is not None, "it was posted"
        self._pending.wait()
        self._pending = None

    def unpack(self) -> None:
        """Wait until it has arrived, and copy it into the views."""
        self.wait()
        for part, view in zip(self._parts(self._whole()), self.views, strict=True):
            if part.data_ptr() != view.data_ptr():
                view.copy_(part)

    def _whole(self) -> Tensor:
        if len(self.views) == 1:
            return self.views[0]
        if self._packed is None:
            self._packed = torch.empty(self.nbytes, dtype=torch.uint8, device=self.views[0].device)
        return self._packed

    def _parts(self, whole: Tensor) -> Iterable[Tensor]:
        at = 0
        for view in self.views:
            yield whole[at : at + len(view)]
            at += padded(len(view))


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def in_parcels(sizes: Sequence[int]) -> list[range]:
    """Consecutive stretches that go together."""
    found, first, total = list[range](), 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > LARGEST:
            found.append(range(first, i))
            first, total = i, 0
        total += size
    if sizes:
        found.append(range(first, len(sizes)))
    return found
