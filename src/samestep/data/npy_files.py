"""`samestep.Files`: many .npy files as one array, mapped into memory when their rows are asked for."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from samestep.data.columns import MAX_OPEN, Column, RecentlyUsed, matching
from samestep.errors import JobRefused, TrainingFailed


class Files(Column):
    """.npy files, sorted by path as text and joined along the rows: a column of `Job.data`.

    files: a folder, whose .npy files are meant, or a pattern such as "images/*.npy".

    Only headers are read at first. A worker maps a file when it needs a row of it; pages read stay in
    the system's page cache, which all workers of a host share. Raises JobRefused for files that are
    missing, damaged, hold Python objects, or differ in the shape or dtype of their rows.
    """

    def __init__(self, files: str | Path) -> None:
        self._headers = [_checked_header(path) for path in matching(files, ".npy", "Files")]
        first = self._headers[0]
        for other in self._headers[1:]:
            if (other.dtype, other.shape[1:]) != (first.dtype, first.shape[1:]):
                raise JobRefused(
                    f"rows of {first.path} are {first.dtype} {first.shape[1:]}, rows of {other.path} are "
                    f"{other.dtype} {other.shape[1:]}: let all files of a column have the same, or narrow the pattern"
                )
        super().__init__([header.shape[0] for header in self._headers], first.shape[1:], first.dtype)
        self._open: RecentlyUsed[int, NDArray[Any]] = RecentlyUsed(MAX_OPEN, lambda _: 1)

    def _part(self, number: int) -> NDArray[Any]:
        return self._open.get(number, partial(_mapped, self._headers[number]))


@dataclass(frozen=True)
class _Header:
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns_first: bool
    offset: int  # of the first element


def _header(path: Path) -> _Header:
    """Read a file's header. Raises OSError or ValueError if it is no whole .npy file."""
    with path.open("rb") as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its format version is {version[0]}.{version[1]}, known are 1.0 and 2.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, columns_first, dtype = read(file)
        needed = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if (size := os.fstat(file.fileno()).st_size) < needed and not dtype.hasobject:
            raise ValueError(f"it has {size} bytes, and by its header {needed}")
        return _Header(path, shape, dtype, columns_first, file.tell())


def _checked_header(path: Path) -> _Header:
    try:
        header = _header(path)
    except (OSError, ValueError) as error:
        raise JobRefused(f"{path} is no whole .npy file: {error}; write it again, or take it out") from None
    if not header.shape:
        raise JobRefused(f"{path} holds one number without dimensions: the first dimension must be the row")
    try:
        torch.from_numpy(np.empty(0, header.dtype))
    except (TypeError, ValueError):
        raise JobRefused(
            f"{path} holds {header.dtype.str} ({header.dtype}), which is no tensor: make numbers of it, in the "
            "machine's own byte order, and save them again"
        ) from None
    return header


def _mapped(header: _Header) -> NDArray[Any]:
    """Map a file into memory. Raises TrainingFailed if it has changed since the job was made."""
    try:
        now = _header(header.path)
    except (OSError, ValueError) as error:
        raise TrainingFailed(
            f"{header.path} was whole when the job was made and is not any more: {error}; put it back, and resume "
            "from the last checkpoint"
        ) from None
    if now != header:
        raise TrainingFailed(
            f"{header.path} had {header.dtype} {header.shape} when the job was made and has {now.dtype} {now.shape} "
            "now: leave the files alone while they are trained on"
        )
    order = "F" if header.columns_first else "C"
    return np.memmap(header.path, header.dtype, "r", header.offset, header.shape, order)  # type: ignore[call-overload,no-any-return]
