"""Checkpoints: the whole state of a run, written so that a kill leaves the old one or the new one.

    DIR/step-00000120/checkpoint.json     what it belongs to, and the hash of every file
                      worker-0.safetensors   what worker 0 owned: `parameter/fc.weight@32768`, ...
                      worker-1.safetensors

A temporary folder is filled, synced and renamed. Tensors are stored as pieces with the element they
start at, so any number of workers can read them back. Safetensors and JSON, no pickle.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samestep.errors import CheckpointRefused
from samestep.numerics.numerics import CHOSEN, KNOWN_BY_KERNELS
from samestep.state.job_traits import Difference, brief

FORMAT = 2
READABLE = (1, FORMAT)  # format 1 does not hold what the job makes and does
KEPT = 3  # checkpoints that stay; older ones are removed
OF_THE_STATE = ("parameters", "buffers", "optimizer's parameter groups")
"""What must be equal in a fingerprint of a job for the state to be readable at all."""


@dataclass(frozen=True)
class Description:
    """checkpoint.json."""

    format: int
    step: int  # optimizer steps done
    numerics: str
    digest: str
    fingerprint: dict[str, Any]  # of the job: what must be equal to go on
    optimizer: list[dict[str, Any]]  # hyperparameters per group
    scheduler: dict[str, Any] | None
    cpu: str
    files: dict[str, str]  # SHA-256 of each
    made: dict[str, Any] | None = None  # what the job makes (training/job_identity.py)
    recorded: dict[str, Any] | None = None  # what it does in this state, to be found again


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The optimizer steps that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def temporary_of(root: Path, run: str) -> Path:
    """The folder that a run fills; one per run, so that its leader can remove it."""
    return root / f".unfinished-{run}"


def unfinished_file(path: Path, run: str) -> Path:
    """The name under which `path` is written before it is whole."""
    return path.with_name(f".unfinished-{run}.weights")


def remove_unfinished(root: str | None, saved: str | None, run: str) -> None:
    """Remove the half-written files of a killed run under `root` and beside the weights that it was to save."""
    if root is not None:
        shutil.rmtree(temporary_of(Path(root), run), ignore_errors=True)
    if saved is not None:
        unfinished_file(Path(saved), run).unlink(missing_ok=True)


def finished(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(root.glob("step-????????")) if root.is_dir() else []


def publish(temporary: Path, description: Description, root: Path) -> Path:
    """Sync the files in `temporary`, describe them, rename the folder, remove old ones."""
    fields = asdict(description)
    text = json.dumps({**fields, "sha256": _fields_hash(fields)}, indent=1, sort_keys=True)
    (temporary / "checkpoint.json").write_text(text)
    for path in [*temporary.iterdir(), temporary]:
        _sync(path)
    target = folder_of(root, description.step)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    _sync(root)
    for old in finished(root)[:-KEPT]:
        old.rename(temporary)  # so that a kill leaves no checkpoint in part
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fields_hash(fields: dict[str, Any]) -> str:
    """The hash of checkpoint.json itself."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_description(folder: Path) -> Description:
    """Raises CheckpointRefused when the folder is damaged; names the one before it, if any."""
    try:
        fields = json.loads((folder / "checkpoint.json").read_text())
        if fields.get("format") not in READABLE:
            raise CheckpointRefused(
                f"checkpoint {folder} has format {fields.get('format')}, this samestep reads "
                f"{' and '.join(map(str, READABLE))}: "
                "use the version that wrote it"
            )
        if fields.pop("sha256", None) != _fields_hash(fields):
            raise ValueError("checkpoint.json does not have the hash it was written with")
        description = Description(**fields)
        for name, wanted in description.files.items():
            if file_hash(folder / name) != wanted:
                raise ValueError(f"{name} does not have the hash it was written with")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        older = [path.name for path in finished(folder.parent) if path.name < folder.name]
        way_out = f"remove the folder to go on from {older[-1]}" if older else "there is no older one: start afresh"
        raise CheckpointRefused(f"checkpoint {folder} is damaged: {error}; {way_out}") from None
    return description


def check_same(
    description: Description, fingerprint: Mapping[str, Any], numerics: str, folder: Path
) -> tuple[list[Difference], list[str]]:
    """Refuse a checkpoint of a job whose state is another one, or of other numerics, naming the first difference.

    Returns the differences that can be meant, and warnings.
    """
    found = []
    for name, here in fingerprint.items():
        there = description.fingerprint.get(name)
        if there == here:
            continue
        if name not in OF_THE_STATE:
            found.append(Difference(name, name, there, here))
            continue
        raise CheckpointRefused(
            f"checkpoint {folder} is of another job: its {name} is {brief(there, here)}, "
            f"this job's is {brief(here, there)}: "
            "resume with the job that wrote it, or use another --checkpoint folder"
        )
    return found, check_numerics(description, numerics, folder)


def check_numerics(description: Description, numerics: str, folder: Path) -> list[str]:
    """Refuse other chosen numerics; the warnings returned name another numeric environment."""
    there = dict(word.split("=", 1) for word in description.numerics.split())
    here = dict(word.split("=", 1) for word in numerics.split())
    warnings = []
    known = "unknown" not in (there.get("kernels", "unknown"), here.get("kernels", "unknown"))
    skipped = KNOWN_BY_KERNELS if known else ("kernels",)
    for name in sorted(here, key=list(here).index):
        if there.get(name) == here[name] or name in skipped:
            continue
        if name in (*CHOSEN, "optimizer"):
            raise CheckpointRefused(
                f"checkpoint {folder} has the numerics {name}={there.get(name)}, this run has {name}={here[name]}: "
                f'the bits would not go on as they began; resume with --numerics "{description.numerics}"'
            )
        alike = known and there["kernels"] == here["kernels"]
        warnings.append(
            f"the checkpoint was written with {name}={there.get(name)}, this run has {name}={here[name]}: "
            + ("kernels that were tried give the same bits, others may not" if alike else "the bits may differ")
        )
    return warnings
