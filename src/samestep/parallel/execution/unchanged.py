"""Forward must leave the parameters alone: every shard of a step sees the same weights.

torch counts changes in place, and the counts are compared around every forward. `param.data.mul_()`
escapes that count, so around a worker's first forward the contents are compared as well, by a
checksum: it takes no memory, and code that changes its weights hardly waits until the second.
"""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from samestep.errors import JobRefused
from samestep.parallel.gradients.layout import dense, storage_order


class Unchanged:
    """Watches over the parameters that this worker computes with, frozen ones included."""

    def __init__(self, params: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._params = list(params)
        self._first = True

    @contextmanager
    def during_forward(self) -> Iterator[None]:
        """Raises JobRefused when what runs inside changed a parameter."""
        versions = [param._version for _, param in self._params]
        sums = [_checksum(param) for _, param in self._params] if self._first else []
        yield
        for (name, param), version in zip(self._params, versions, strict=True):
            if param._version != version:
                raise changed(name)
        for (name, param), before in zip(self._params, sums, strict=bool(sums)):
            if _checksum(param) != before:
                raise changed(name)
        self._first = False


def _checksum(param: nn.Parameter) -> int:
    return zlib.crc32(storage_order(dense(param.detach())).view(torch.uint8).cpu().numpy().data)


def changed(name: str) -> JobRefused:
    return JobRefused(
        f"forward changed parameter {name}: shards would see different weights; change parameters "
        "in the optimizer, or make the value a buffer"
    )
