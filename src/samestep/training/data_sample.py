"""A sample of a job's data, for knowing them again: columns with type and shape, and a hash of some rows.

All rows of small data in memory, else some of them spread evenly, of a data set a few.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samestep.data.rows import TensorRows
from samestep.job.job import Job
from samestep.job.training_data import first_shard, training_rows
from samestep.numerics import random_streams

WHOLE = 16 << 20  # bytes of data in memory up to which all rows are hashed
SPREAD = 1024  # rows of larger ones
FEW = 8  # rows of a data set that makes them one by one


def data_sample(job: Job, shards: int) -> tuple[list[str], str]:
    """Lines that say the type and the shape of each column of a shard; and a hash of the shard and of other rows.

    The random generators are put back. Raises what the data set raises.
    """
    streams = random_streams.leave()
    try:
        shard, found = first_shard(job, shards), hashlib.sha256()
        outline = list(_outline(shard))
        feed(found, shard)
        rows = training_rows(dataclasses.replace(job, num_loader_workers=0))
        if isinstance(rows, TensorRows):
            first = next(iter(rows.take(iter([(0, range(1))]))))
            size = sum(part.nbytes for _, part in leaves(first) if isinstance(part, Tensor))
            count = rows.num_rows if size * rows.num_rows <= WHOLE else min(SPREAD, rows.num_rows)
            for some in np.array_split(_spread(rows.num_rows, count), -(-count // SPREAD)):
                feed(found, next(iter(rows.take(iter([(0, some.tolist())])))))
        elif job.shuffle:  # the rows of a data set in order can only be made from the first one on
            feed(found, next(iter(rows.take(iter([(0, _spread(rows.num_rows, FEW).tolist())])))))
        return outline, found.hexdigest()[:32]
    finally:
        random_streams.resume(streams)


def _spread(num_rows: int, count: int) -> Any:
    """`count` row numbers, or as many as there are, from the first to the last."""
    return np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).astype(np.int64))


def leaves(value: Any, path: str = "batch", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The tensors, arrays and plain values of a batch of any type, with the way to each."""
    if (
        depth > 8
        or value is None
        or isinstance(value, Tensor | np.ndarray | bool | int | float | complex | str | bytes)
    ):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, f"{path}[{name!r}]", depth + 1)
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]", depth + 1)
    elif hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            yield from leaves(item, f"{path}.{name}", depth + 1)
    else:
        yield path, type(value).__name__


def _outline(value: Any) -> Iterator[str]:
    for path, part in leaves(value):
        if isinstance(part, Tensor | np.ndarray):
            yield f"{path} {str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
        else:
            yield f"{path} {type(part).__name__}"


def feed(found: Any, value: Any) -> None:
    """Hash a batch of any type."""
    for path, part in leaves(value):
        found.update(path.encode())
        if isinstance(part, Tensor):
            dense = part.detach().cpu() if part.layout is torch.strided else part.detach().cpu().to_dense()
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(dense.contiguous().view(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, np.ndarray) and part.dtype.hasobject is False:
            found.update(f"{part.dtype} {part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            found.update(repr(part).encode())
