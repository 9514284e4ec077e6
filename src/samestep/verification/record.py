"""The record of a run: the values of each step, for comparison with another run.

A folder with one file per step and process, step-000002.worker-1.safetensors, each whole or not there. A file holds
tensors under keys

    kind|name|shard|part          gradient|fc1.weight|-|3       activation|conv1|2|0       rows|batch|0|0

`shard` is "-" for what belongs to the whole step. Large tensors are folded: 2, 4, 8, ... neighbours are summed, until
at most 65,536 sums are left. A fold is linear, so two gradients in the ratio 2 have folds in the ratio 2, and every
element counts in it; stretches folded each by itself and then together give the fold of the whole. The hash of the
whole is kept beside, and says whether the bits are equal.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

KINDS = (
    "evaluation",  # of the parameters that the steps before have made
    "rows",  # which rows of the data
    "random stream",  # states of the random generators
    "weights",  # with which a shard was computed
    "activation",  # outputs of the layers, per shard
    "loss",
    "loss weight",  # rows or tokens that the loss is a mean over
    "local gradient",  # of a shard or a process, before anything is combined
    "gradient",  # of the batch, as the optimizer gets it
    "clip norm",
    "setting",  # of the optimizer, such as the learning rate
    "optimizer state",
    "parameter",  # after the update
    "buffer",
    "collective",  # by name, tensor and order
)
"""In the order in which a step makes them: of two differences, the earlier one is the cause."""

AS = " as "  # between a tied parameter's first name and the further name that a local gradient belongs to
FOLDED = 65_536  # elements of a folded tensor, at most


@dataclass(frozen=True, order=True)
class Key:
    """Name of one value of a step."""

    kind: str
    name: str
    shard: int = -1  # -1: belongs to the whole step
    part: int = 0  # the nth call of a layer, the nth stretch of a parameter

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def __str__(self) -> str:
        return f"{self.kind}|{self.name}|{'-' if self.shard < 0 else self.shard}|{self.part}"

    @staticmethod
    def parse(text: str) -> "Key":
        kind, rest = text.split("|", 1)
        name, shard, part = rest.rsplit("|", 2)  # a name may have a bar
        return Key(kind, name, -1 if shard == "-" else int(shard), int(part))


@dataclass(frozen=True)
class Noted:
    """One tensor of a record."""

    rank: int
    digest: str  # of all its bits, dtype and shape
    shape: tuple[int, ...]
    values: Tensor  # 1-D float64: its elements, folded
    text: str = ""  # instead of values, where the value is no number


class RecordWriter:
    """Writer of one process's part of a record."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._values: dict[str, Tensor] = {}
        self._facts: dict[str, list[object]] = {}

    def note(self, key: Key, value: Tensor | float | str, width: int | None = None) -> None:
        """Note a copy, `width` elements folded into one. A key that this step has already gets the next part."""
        while str(key) in self._facts:
            key = Key(key.kind, key.name, key.shard, key.part + 1)
        if isinstance(value, str):
            self._values[str(key)] = torch.zeros(0)
            self._facts[str(key)] = [digest_of(value.encode()), [], value]
            return
        tensor = torch.tensor(value, dtype=torch.float64) if isinstance(value, int | float) else value.detach()
        self._values[str(key)] = folded(tensor, width, exact=False)
        self._facts[str(key)] = [tensor_digest(tensor), list(tensor.shape), ""]

    def end_step(self, step: int) -> None:
        """Write the values noted since the last call, if there are any."""
        if not self._facts:
            return
        path = self._folder / f"step-{step:06d}.worker-{self._rank}.safetensors"
        temporary = path.with_suffix(".unfinished")
        save_file(self._values, temporary, {"facts": json.dumps(self._facts)})
        temporary.replace(path)
        self.forget()

    def forget(self) -> None:
        """Drop the values noted since the last step's end."""
        self._values, self._facts = {}, {}


@dataclass(frozen=True)
class Record:
    """A folder that the writers of all processes have written."""

    folder: Path

    def steps(self) -> list[int]:
        return sorted({int(path.name[5:11]) for path in self.folder.glob("step-*.safetensors")})

    def ranks(self, step: int) -> list[int]:
        names = self.folder.glob(f"step-{step:06d}.worker-*.safetensors")
        return sorted(int(path.name.split("-")[2].split(".")[0]) for path in names)

    def of(self, step: int) -> dict[Key, list[Noted]]:
        """All values of a step: by key, one from each process that noted it."""
        found: dict[Key, list[Noted]] = {}
        for rank in self.ranks(step):
            with safe_open(self.folder / f"step-{step:06d}.worker-{rank}.safetensors", framework="pt") as file:
                for text, (digest, shape, value) in json.loads(file.metadata()["facts"]).items():
                    noted = Noted(rank, digest, tuple(shape), file.get_tensor(text).double(), value)
                    found.setdefault(Key.parse(text), []).append(noted)
        return found


Step = Mapping[Key, Sequence[Noted]]


def not_finite_values(step: Step, kinds: Collection[str]) -> list[tuple[Key, Noted]]:
    """Values of these kinds that hold a NaN or an infinity, in the order in which they were noted."""
    found = [(key, noted) for key, each in step.items() if key.kind in kinds for noted in each]
    return [(key, noted) for key, noted in found if not bool(noted.values.isfinite().all())]


def folded(tensor: Tensor, width: int | None = None, *, exact: bool = True) -> Tensor:
    """1-D sums of `width` neighbours, in the order of a contiguous tensor; by default at most 65,536 sums.

    float64, or with `exact` off the tensor's own type where nothing had to be summed.
    """
    flat = tensor.detach().cpu().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    if width is None:
        width = 1
        while flat.numel() > width * FOLDED:
            width *= 2
    if width == 1:
        return flat.double().clone() if exact else flat.clone()
    padded = torch.zeros(-(-flat.numel() // width) * width, dtype=torch.float64)
    padded[: flat.numel()] = flat
    return padded.view(-1, width).sum(1)


def tensor_digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return digest_of(raw.numpy().tobytes(), f"{tensor.dtype} {tuple(tensor.shape)}".encode())


def digest_of(*parts: bytes) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def best_factor(found: Tensor, wanted: Tensor) -> float:
    """k that minimises the norm of found - k wanted; 0 where `wanted` is zero. Both 1-D."""
    square = float(wanted @ wanted)
    return float(found @ wanted / square) if square > 0 else 0.0


def relative_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of `wanted`; infinite where only one is zero or not finite."""
    distance = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    norm = sum(float(b.square().sum()) for b in wanted)
    if distance == 0:
        return 0.0
    return float("inf") if not norm > 0 or distance != distance else float((distance / norm) ** 0.5)
