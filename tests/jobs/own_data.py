"""Data sets as people have them: open files, archives, generators of their own, rows that cannot be used."""

import io
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

import samestep

ROWS, WIDTH = 64, 6


def values() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)


class Base:
    def __len__(self) -> int:
        return ROWS

    def row(self, i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return values()[i]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        row = torch.from_numpy(self.row(i).copy())
        return row[:-1], row[-1:]


class OpenFile(Base):
    """One position for all readers."""

    def __init__(self, folder: Path, buffering: int = -1) -> None:
        (folder / "rows.bin").write_bytes(values().tobytes())
        self.file = (folder / "rows.bin").open("rb", buffering=buffering)

    def row(self, i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        size = 4 * WIDTH
        self.file.seek(i * size)
        read = b"".join(self.file.read(4) for _ in range(WIDTH))  # in pieces: others get in between
        return np.frombuffer(read, np.float32)


class Archive(Base):
    """A member of a zip file for each row."""

    def __init__(self, folder: Path) -> None:
        with zipfile.ZipFile(folder / "rows.zip", "w") as made:
            for i, row in enumerate(values()):
                made.writestr(str(i), row.tobytes())
        self.archive = zipfile.ZipFile(folder / "rows.zip")

    def row(self, i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.frombuffer(self.archive.read(str(i)), np.float32)


class Gone(OpenFile):
    """A file without a name any more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "rows.bin").unlink()


class Drawing(Base):
    """Noise from a generator of its own."""

    def __init__(self, generator: Any) -> None:
        self.rng = generator

    def row(self, i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        if isinstance(self.rng, torch.Generator):
            return super().row(i) + torch.rand(1, generator=self.rng).numpy()
        return super().row(i) + np.float32(self.rng.random())


class InTurn(Base):
    """Rows as they come from a stream, whatever number is asked for."""

    def __init__(self) -> None:
        self.stream = io.BytesIO(values().tobytes())

    def row(self, i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.frombuffer(self.stream.read(4 * WIDTH), np.float32)


class Seeded(Base):
    """Noise from the generators that samestep seeds for every row."""

    def row(self, i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return super().row(i) + np.float32(random.random() + np.random.rand() + torch.rand(1).item())


def job(data: str = "Seeded", folder: str = ".", loaders: int = 0) -> samestep.Job:
    where = Path(folder)
    made = {
        "OpenFile": lambda: OpenFile(where), "Archive": lambda: Archive(where),
        "unbuffered": lambda: OpenFile(where, 0),
        "Gone": lambda: Gone(where), "numpy": lambda: Drawing(np.random.default_rng(0)), "InTurn": InTurn,
        "torch": lambda: Drawing(torch.Generator().manual_seed(0)), "random": lambda: Drawing(random.Random(0)),
        "Seeded": Seeded, "Base": Base,
    }  # fmt: skip
    return of(made[data](), num_loader_workers=loaders)


def of(data: Any, **more: Any) -> samestep.Job:
    options = {
        "model": lambda: nn.Linear(WIDTH - 1, 1), "loss": nn.MSELoss(), "data": data, "batch_size": 16, "shards": 4,
        "optimizer": lambda params: torch.optim.SGD(params, 0.1), "epochs": 2,
    }  # fmt: skip
    return samestep.Job(**{**options, **more})


class Broken(Base):
    """Some rows cannot be read."""

    def __getitem__(self, i: int) -> Any:
        return None if i % 5 == 1 else super().__getitem__(i)


def readable(samples: list[Any]) -> Any:
    return default_collate([sample for sample in samples if sample is not None])


def mean(model: nn.Module, batch: Any) -> Tensor:
    return torch.as_tensor((model(batch[0]) - batch[1]).square().mean())


def dropping(loss: str = "mean", loaders: int = 0, evaluated: int = 0) -> samestep.Job:
    """Rows are dropped in collate. One batch is the whole data set, so that a plain step can be compared."""
    more: dict[str, Any] = {"loss": nn.MSELoss()} if loss == "torch" else {"loss": None, "forward": mean}
    if loss == "norm":
        more["model"] = lambda: nn.Sequential(nn.Linear(WIDTH - 1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    if evaluated:
        more["evaluate"] = Broken()
    return of(
        Broken(), collate_fn=readable, shuffle=False, batch_size=ROWS, epochs=1, num_loader_workers=loaders, **more
    )


class OwnCollate:
    """Masks rows by a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return x * (torch.rand(x.shape, generator=self.generator) < 0.5), y


def masking() -> samestep.Job:
    return of(Base(), collate_fn=OwnCollate())


def beyond(more: int = 8, own: bool = False) -> samestep.Job:
    """An iterable with more rows than it promises; or with a generator of its own."""
    generator = np.random.default_rng(0)

    def make(epoch: int, start: int) -> Iterator[Any]:
        for i in range(start, ROWS + more):
            row = torch.from_numpy(values()[i % ROWS]) + (generator.random() if own else 0.0)
            yield row[:-1].float(), row[-1:].float()

    return of(samestep.Ordered(make, ROWS), shuffle=False, epochs=1)
