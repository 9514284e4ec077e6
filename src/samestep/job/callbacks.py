"""Callbacks that come with samestep: a line of JSON per step, and TensorBoard.

A callback is called in worker 0 after every step. It is made in the job function, before the workers
are forked, so it opens what it writes to at its first call.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from samestep.errors import JobRefused
from samestep.system.json_values import line_of


class JsonLines:
    """Append one JSON object per step to a file: step, loss, and metrics after an evaluation.

    A run that resumes from a checkpoint appends too; steps done twice then have two lines, of which
    the last one counts. NaN and infinity are null. Raises JobRefused for a path that cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._file: IO[str] | None = None
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise JobRefused(
                f"JsonLines cannot write {self._path}: {self._path.parent} must be a folder, and the path no folder"
            )

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8", buffering=1)  # line by line
        fields: dict[str, Any] = {"step": step, "loss": loss}
        if metrics:
            fields["metrics"] = metrics
        self._file.write(line_of(fields) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard:
    """Write the loss of every step, and metrics after an evaluation, for TensorBoard.

    The scalars are named `loss` and `metrics/NAME`. Raises JobRefused when tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).absolute()
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            raise JobRefused(
                "the TensorBoard callback needs the package tensorboard, which is not installed: "
                "pip install samestep[tensorboard], or use samestep.JsonLines"
            )

    def __call__(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder)
        self._writer.add_scalar("loss", loss, step)
        for name, value in metrics.items():
            self._writer.add_scalar(f"metrics/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
