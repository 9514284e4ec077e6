"""Rehearsal of the end: after the first update, what digests, checkpoints and saved files are to hold is looked at.

What they cannot hold is refused there, and not after the last step. Names, types and plain values are looked at; no
tensor is copied.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from samestep.errors import JobRefused
from samestep.parallel.execution.executor import Executor
from samestep.state import snapshot


@dataclass(frozen=True)
class Ends:
    """Files that a run is to leave behind. checkpoint, save: their paths; weights: in its report."""

    checkpoint: str | None = None
    save: str | None = None
    weights: bool = False


def rehearse(executor: Executor, ends: Ends, step: int) -> None:
    """Raises JobRefused for what could not be written at the end, after `step` optimizer steps."""
    json.dumps(snapshot.values(executor, step))
    for update, _ in executor.optimizers():
        for piece, kind, key, value in update.state.pieces():
            if ends.checkpoint is not None:
                name = executor.layout.entries[piece.entry].name
                snapshot.check_storable(f"{kind} state {key!r} of {name} in the optimizer", value)
    if ends.checkpoint is not None:
        for name, value in [*executor.model.named_parameters(), *executor.model.named_buffers()]:
            snapshot.check_storable(name, value)
    if ends.save is not None or ends.weights:
        snapshot.named_weights(executor)
    if executor.transport.rank == 0:
        check_writable(ends)


def check_writable(ends: Ends) -> None:
    """Raises JobRefused for a path where nothing can be written."""
    for option, path in (("--save", ends.save), ("--checkpoint", ends.checkpoint)):
        if path is None:
            continue
        where = Path(path)
        is_file = option == "--save"
        try:
            if is_file and where.is_dir():
                raise IsADirectoryError(f"{where} is a folder")
            folder = where.parent if is_file else where
            if not is_file:  # it is made with the first checkpoint
                folder = next(there for there in (folder, *folder.absolute().parents) if there.exists())
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")
        except OSError as error:
            raise JobRefused(
                f"{option} {path} cannot be written ({error.strerror or error}): name a "
                f"{'file in a folder that is there' if is_file else 'folder'} and that this user may write to"
            ) from None
