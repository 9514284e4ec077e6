"""One job whose data come in every form there is; see `write`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import samestep

ROWS, BATCH, SHARDS, STEPS = 100, 32, 8, 11  # four batches per epoch, the last one of four rows


def columns() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 2, 3, generator=generator), torch.randint(0, 5, (ROWS,), generator=generator)


def write(folder: Path) -> None:
    """x in seven files, y in three; Parquet in two files with row groups of nine."""
    import pyarrow.parquet  # not at the top: it starts a thread, and workers are forked from who imports a job

    x, y = (column.numpy() for column in columns())
    (folder / "x").mkdir()
    (folder / "y").mkdir()
    for name, column, cuts in [("x", x, (10, 11, 40, 41, 70, 95)), ("y", y, (30, 60))]:
        np.save(folder / f"{name}.npy", column)
        for i, part in enumerate(np.split(column, cuts)):
            np.save(folder / name / f"{i:02}.npy", part)
    for i, rows in enumerate((slice(0, 45), slice(45, None))):
        flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x[rows].reshape(-1)), 3)
        table = pyarrow.table({"x": pyarrow.FixedSizeListArray.from_arrays(flat, 2), "y": y[rows]})
        pyarrow.parquet.write_table(table, folder / f"{i}.parquet", row_group_size=9)


def samples(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = columns()
    for row in range(start, ROWS):
        yield x[row], y[row]


def rotated(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every epoch has an order of its own, and rows draw."""
    x, y = columns()
    for row in range(start, ROWS):
        own = (row + 13 * epoch) % ROWS
        yield x[own] + 0.1 * torch.randn(2, 3), y[own]


def too_short(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    for row, sample in enumerate(samples(epoch, start), start):
        if (epoch, row) == (1, 77):
            return
        yield sample


def data_as(form: str, folder: Path) -> Any:
    match form:
        case "memory":
            return columns()
        case "mapped":
            return tuple(np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in "xy")
        case "files":
            return samestep.Files(folder / "x"), samestep.Files(f"{folder}/y/*.npy")
        case "parquet":
            found = samestep.Parquet(folder, columns=["y", "x"], cache_bytes=1000)
            return found["x"], found["y"]
    return samestep.Ordered({"ordered": samples, "rotated": rotated, "too short": too_short}[form], ROWS)


def job(form: str, folder: str, shuffle: bool = True, loaders: int = 0, held_out: str = "") -> samestep.Job:
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.Dropout(0.2), nn.Linear(16, 5)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, 0.1, momentum=0.9),
        data=data_as(form, Path(folder)),
        evaluate=data_as(held_out, Path(folder)) if held_out else None,
        shuffle=shuffle,
        num_loader_workers=loaders,
        batch_size=BATCH,
        shards=SHARDS,
        steps=STEPS,
    )
