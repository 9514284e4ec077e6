"""`samestep.Parquet`: columns of Parquet files, decoded a row group at a time."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samestep.data.columns import MAX_OPEN, Column, RecentlyUsed, matching
from samestep.errors import JobRefused, TrainingFailed


class Parquet(Mapping[str, Column]):
    """Parquet files, sorted by path as text and joined: `Job.data` as a mapping, or columns of it by name.

        digits = samestep.Parquet("digits/*.parquet", columns=["image", "label"])
        Job(data=(digits["image"], digits["label"]), ...)

    files: a folder, whose .parquet files are meant, or a pattern.
    columns: names of the columns to read; default: all. Numbers or fixed-size lists of numbers (of any depth),
        without nulls.
    cache_bytes: size of the decoded row groups that each process keeps.

    Only metadata is read at first. A row costs the decoding of its column's whole row group, unless that
    is still kept: when training shuffles over more row groups than `cache_bytes` holds, a batch of n rows
    decodes up to n of them. Ways out: a cache that holds the data, small row groups (a few hundred rows),
    rows shuffled once on writing and then shuffle=False, or
    `samestep.Files`, which reads only the rows.

    Needs the package pyarrow: `pip install samestep[parquet]`. Raises JobRefused for files that are
    missing or damaged, lack a column, or differ in the shape or dtype of one.
    """

    def __init__(
        self, files: str | Path, columns: Sequence[str] | None = None, *, cache_bytes: int = 256 * 2**20
    ) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise JobRefused("Parquet needs the package pyarrow, which is not installed: pip install samestep[parquet]")
        if isinstance(columns, str) or not all(isinstance(name, str) for name in columns or []):
            raise JobRefused(f"Parquet has columns={columns!r}: give a list of names")
        if type(cache_bytes) is not int or cache_bytes < 0:
            raise JobRefused(f"Parquet has cache_bytes={cache_bytes!r}; it must be a whole number of at least 0")
        paths = matching(files, ".parquet", "Parquet")
        headers = _headers(paths, columns)
        groups = _Groups(paths, headers, cache_bytes)
        self._columns: dict[str, Column] = {}
        for name, (dtype, shape) in headers[0]["columns"].items():
            for path, header in zip(paths, headers, strict=True):
                if header["columns"].get(name) != [dtype, shape]:
                    there = header["columns"].get(name, ["not there", []])
                    raise JobRefused(
                        f"column {name!r} of {paths[0]} is {dtype} {tuple(shape)}, that of {path} is "
                        f"{there[0]} {tuple(there[1])}: let all files have the same, or narrow the pattern"
                    )
            self._columns[name] = _ParquetColumn(name, groups, shape, np.dtype(dtype))

    def __getitem__(self, name: str) -> Column:
        if name not in self._columns:
            raise JobRefused(f"Parquet has no column {name!r}; it has {', '.join(self._columns)}")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _headers(paths: Sequence[Path], columns: Sequence[str] | None) -> list[Any]:
    found = _ask_process({"paths": [*map(str, paths)], "columns": None if columns is None else [*columns]})
    if isinstance(found, dict):
        raise JobRefused(f"{found['path']} cannot be read: {found['error']}")
    return list(found)


def _ask_process(question: dict[str, Any]) -> Any:
    """The answer of parquet_headers.py, run as a process."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("parquet_headers.py"))]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobRefused(f"the process that reads the metadata of Parquet files failed: {done.stderr}")
    return json.loads(done.stdout)


class _Groups:
    """Row groups of all files, numbered consecutively, with a cache of decoded ones."""

    def __init__(self, paths: Sequence[Path], headers: Sequence[Any], cache_bytes: int) -> None:
        self.lengths = [rows for header in headers for rows in header["rows"]]
        self._places = [
            (path, i) for path, header in zip(paths, headers, strict=True) for i in range(len(header["rows"]))
        ]
        self._open: RecentlyUsed[Path, Any] = RecentlyUsed(MAX_OPEN, lambda _: 1)
        self._decoded: RecentlyUsed[tuple[int, str], NDArray[Any]] = RecentlyUsed(
            cache_bytes, lambda array: array.nbytes
        )

    def column(self, number: int, name: str, row_shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        return self._decoded.get((number, name), partial(self._decode, number, name, row_shape, dtype))

    def _decode(self, number: int, name: str, row_shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        import pyarrow.parquet  # only in workers: it starts a thread

        path, group = self._places[number]
        try:
            file = self._open.get(path, partial(pyarrow.parquet.ParquetFile, path, pre_buffer=False))
            array = file.read_row_group(group, columns=[name], use_threads=False).column(name).combine_chunks()
            for depth in range(len(row_shape) + 1):
                if array.null_count:
                    raise ValueError("it has nulls: fill them in")
                array = array.flatten() if depth < len(row_shape) else array
            found = array.to_numpy(zero_copy_only=False)
            if found.dtype != dtype:
                raise ValueError(f"it is {found.dtype} now and was {dtype} when the job was made")
            return np.asarray(found).reshape(self.lengths[number], *row_shape)
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise TrainingFailed(
                f"column {name!r} of row group {group} of {path} cannot be read: {_line(error)}; mend "
                "the file, and resume from the last checkpoint"
            ) from None


def _line(error: BaseException) -> str:
    return str(error).strip("'").partition("\n")[0]


class _ParquetColumn(Column):
    def __init__(self, name: str, groups: _Groups, row_shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        super().__init__(groups.lengths, row_shape, dtype)
        self._name, self._groups = name, groups

    def _part(self, number: int) -> NDArray[Any]:
        return self._groups.column(number, self._name, self.shape[1:], self.dtype)
