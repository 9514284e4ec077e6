"""Report of a finished run. Imports no torch, so that commands start fast."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from samestep.plan.prediction import Prediction
from samestep.system.json_values import finite
from samestep.trace.worker_trace import WorkerTrace

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WorkerTime:
    """Seconds of one worker over a run, and bytes of tensors that it got from others.

    wired: bytes that came from other hosts; framed: the part of these that is headers and small records.
    """

    compute: float
    communicate: float
    wait: float
    moved: int = 0
    wired: int = 0
    framed: int = 0


@dataclass(frozen=True)
class Report:
    """The result of `samestep.train`.

    losses: the batch's loss of every step of this run, before the update.
    seconds_per_step: median after the first three steps; None when there were fewer than four.
    metrics: results of the last evaluation; empty without held-out data.
    prediction: the planner's prediction, made before the run; None without one.
    deals: (first step, shards of each worker), where shards were reassigned because workers' speeds had changed.
    audits: number of comparisons of the workers' states, all of which found them equal.
    epochs_proven: epochs in which every row was used exactly once; None without a ledger.
    rows_dropped: rows in these epochs that Job.collate_fn has left out.
    traces: per worker, the last steps action by action, if requested.
    sync: figures of a sync policy other than exact: bound (steps), staleness (the largest seen, steps), divergence
        (relative), and updates or meetings. With stale(S), divergence is the largest distance of parameters from
        those that a gradient was computed on; with local(H), the largest distance of a logical worker's parameters
        from their mean. Empty for exact. With local(H), seconds_per_step is the mean, since steps that end in a
        meeting are longer.
    """

    digest: str
    losses: Sequence[float]
    seconds_per_step: float | None
    workers: int
    assign: tuple[int, ...]
    shards: int
    numerics: str
    plan: str
    metrics: Mapping[str, float]
    steps: int  # optimizer steps done in all
    rows_per_second: float | None
    times: Sequence[WorkerTime]
    weights_file: int | None = field(default=None, repr=False)
    prediction: Prediction | None = None
    traces: Sequence[WorkerTrace] = field(default=(), repr=False)
    deals: Sequence[tuple[int, tuple[int, ...]]] = ()
    audits: int = 0
    epochs_proven: int | None = None
    rows_dropped: int = 0
    sync: Mapping[str, float] = field(default_factory=dict)

    @property
    def prediction_error(self) -> float | None:
        """Predicted over measured seconds per step, less one; None without either."""
        if self.prediction is None or self.seconds_per_step is None:
            return None
        return self.prediction.seconds / self.seconds_per_step - 1

    def state_dict(self) -> "dict[str, Tensor]":
        """The trained weights, under the names that the model's `load_state_dict` takes.

        Raises RuntimeError if the run did not collect them: on workers other than 0, and with a memory limit.
        """
        from safetensors.torch import load

        if self.weights_file is None:
            raise RuntimeError("this run did not collect its weights: use samestep.train, or --save FILE")
        size = os.fstat(self.weights_file).st_size
        return load(b"".join(_read(self.weights_file, size)))

    def as_json(self) -> dict[str, Any]:
        """The fields of the last line that `--json` prints. JSON has no NaN and no infinity: null stands for them."""
        found = {
            "digest": self.digest,
            "losses": self.losses,
            "seconds_per_step": self.seconds_per_step,
            "workers": self.workers,
            "assign": list(self.assign),
            "shards": self.shards,
            "numerics": self.numerics,
            "plan": self.plan,
            "metrics": self.metrics,
            "steps": self.steps,
            "rows_per_second": self.rows_per_second,
            "deals": [{"step": step, "assign": list(assign)} for step, assign in self.deals],
            "audits": self.audits,
            "epochs_proven": self.epochs_proven,
            "rows_dropped": self.rows_dropped,
            "times": [vars(time) for time in self.times],
            "predicted_seconds_per_step": None if self.prediction is None else self.prediction.seconds,
            "prediction_error": self.prediction_error,
            "sync": self.sync,
        }
        return dict(finite(found))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Also at the interpreter's end, when modules have no names any more."""
        if self.weights_file is not None:
            try:  # noqa: SIM105 - contextlib may be gone
                close(self.weights_file)
            except OSError:
                pass


def _read(file: int, size: int) -> list[bytes]:
    parts, at = [], 0
    while at < size:
        part = os.pread(file, 1 << 26, at)
        parts.append(part)
        at += len(part)
    return parts
