"""Metadata of Parquet files, read in a process of its own.

    python parquet_headers.py < '{"paths": [...], "columns": [...] or null}'

pyarrow starts a thread when it is imported, and a process that workers are forked from must not have
a second one. The answer is a list with one object per file, or {"path": ..., "error": ...}.
"""

import json
import sys
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet


def header(path: str, wanted: list[str] | None) -> dict[str, Any]:
    file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    schema, metadata = file.schema_arrow, file.metadata
    if missing := [name for name in wanted or [] if name not in schema.names]:
        raise ValueError(f"it has no column {missing[0]!r}; it has {', '.join(schema.names)}")
    names = wanted or schema.names
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    for number, group in enumerate(groups):
        for chunk in (group.column(i) for i in range(group.num_columns)):
            if chunk.path_in_schema in names and chunk.statistics is not None and chunk.statistics.null_count:
                raise ValueError(f"column {chunk.path_in_schema!r} has nulls in row group {number}: fill them in")
    return {
        "rows": [group.num_rows for group in groups],
        "columns": {name: form(name, schema.field(name).type) for name in names},
    }


def form(name: str, kind: Any) -> list[Any]:
    """Dtype and shape of a row."""
    types, shape, inner = pyarrow.types, [], kind
    while types.is_fixed_size_list(inner):
        shape.append(inner.list_size)
        inner = inner.value_type
    if not (types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)):
        raise ValueError(
            f"column {name!r} is {kind}, which is no tensor: make numbers or fixed-size lists of numbers of it, or "
            "leave it out with columns="
        )
    return [numpy.dtype(inner.to_pandas_dtype()).name, shape]


def answer(question: dict[str, Any]) -> Any:
    found = []
    for path in question["paths"]:
        try:
            found.append(header(path, question["columns"]))
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            return {"path": path, "error": str(error).splitlines()[0]}
    return found


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
