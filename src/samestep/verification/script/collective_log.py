"""The log of collectives that a process of a script enters: a line before each one, and one after it.

A process that hangs has a last line without "done"; the line names the step, the collective, its tensor and the place.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

COLLECTIVES = (
    "all_reduce", "broadcast", "reduce", "all_gather", "all_gather_into_tensor", "gather", "scatter", "reduce_scatter",
    "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "all_gather_object", "broadcast_object_list", "barrier",
    "send", "recv", "isend", "irecv",
)  # fmt: skip


Named = Callable[[], Iterator[tuple[str, Tensor]]]


class CollectiveLog:
    """Wrappers of torch's collectives. named: the parameters that a collective's tensor may belong to."""

    def __init__(self, folder: Path, rank: int, script: Path, step: Callable[[], int], named: Named) -> None:
        self._log = (folder / f"collectives-{rank}.jsonl").open("w", buffering=1)
        self._script, self._step, self._named = script, step, named
        self._in_collective = False

    def install(self) -> None:
        for name in COLLECTIVES:
            self._watch(name)

    def _watch(self, name: str) -> None:
        inner = getattr(dist, name)

        def entered(*arguments: Any, **options: Any) -> Any:
            site = self._site()
            if self._in_collective or site is None:  # torch's own call, or one inside another
                return inner(*arguments, **options)
            self._in_collective = True
            try:
                line = [self._step(), name, *self._tensor_of((*arguments, *options.values())), site]
                self._log.write(json.dumps(line) + "\n")
                found = inner(*arguments, **options)
                self._log.write('"done"\n')
                return found
            finally:
                self._in_collective = False

        setattr(dist, name, entered)

    def _tensor_of(self, arguments: Sequence[Any]) -> tuple[str, list[int]]:
        """Name and shape of a collective's tensor; no name where it is none of the model's."""
        tensor = next((value for value in arguments if isinstance(value, Tensor)), None)
        if tensor is None:
            return "", []
        for name, parameter in self._named():
            if tensor is parameter or tensor.data_ptr() == parameter.data_ptr() != 0:
                return name, list(tensor.shape)
            gradient = parameter.grad
            if gradient is None or hasattr(gradient, "full_tensor"):
                continue
            if tensor.data_ptr() == gradient.data_ptr() != 0:
                return f"gradient of {name}", list(tensor.shape)
        return "", list(tensor.shape)

    def _site(self) -> str | None:
        """The line of the user's code that calls; None where torch does."""
        for frame in reversed(traceback.extract_stack(limit=12)[:-2]):
            if "/torch/" in frame.filename:
                return None
            if Path(frame.filename).parent == self._script.parent:
                return f"{Path(frame.filename).name}:{frame.lineno}"
        return None
