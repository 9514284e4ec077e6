"""Causes for which two runs of one training differ, each with its meaning."""

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Classes of differences."""

    ROUNDING = "rounding"
    LOSS_WEIGHTING = "loss weighting"
    MISSING_REDUCTION = "missing reduction"
    DOUBLE_COUNTING = "double counting"
    DATA_ORDER = "data order"
    RANDOM_STREAM = "random stream"
    BATCHNORM = "BatchNorm"
    CLIPPING = "clipping"
    STALE_WEIGHTS = "stale weights"
    OPTIMIZER_STATE = "optimizer state"
    BUFFERS = "buffers"
    HIDDEN_STATE = "hidden state"
    NOT_FINITE = "not finite"
    COUPLED_ROWS = "coupled rows"
    COLLECTIVE_ORDER = "collective order"
    HANG = "hang"
    NOT_DETERMINISTIC = "not deterministic"
    UNKNOWN = "unknown"


MEANING = {
    Cause.ROUNDING: "the same numbers, added in another order",
    Cause.LOSS_WEIGHTING: "rows or tokens do not count alike: means of unequal parts are averaged, or a factor is off",
    Cause.MISSING_REDUCTION: "workers keep gradients of their own rows that all should share",
    Cause.DOUBLE_COUNTING: "some rows' gradients enter more than once",
    Cause.DATA_ORDER: "workers train on other rows than one process does",
    Cause.RANDOM_STREAM: "the generators are in another state: dropout and other random layers draw other numbers",
    Cause.BATCHNORM: "statistics are those of a part of the batch",
    Cause.CLIPPING: "the gradient is scaled by the norm of a part of it",
    Cause.STALE_WEIGHTS: "the parameters that were computed with are not those that the optimizer changes",
    Cause.OPTIMIZER_STATE: "moments, steps or settings of the optimizer differ",
    Cause.BUFFERS: "buffers differ between workers, or from one process's",
    Cause.HIDDEN_STATE: "forward or backward depends on what the process did before, or on which process it is",
    Cause.NOT_FINITE: "a NaN or an infinity, which a reduction spreads to all workers",
    Cause.COUPLED_ROWS: "the loss of a row depends on the other rows of its batch, which no sharding keeps",
    Cause.COLLECTIVE_ORDER: "workers do not meet in the same collectives in the same order",
    Cause.HANG: "workers wait for one another",
    Cause.NOT_DETERMINISTIC: "two runs on one process already differ",
    Cause.UNKNOWN: "none of the known patterns fits",
}


@dataclass(frozen=True)
class Finding:
    """The first place where two runs differ, and the cause that the pattern of differences shows."""

    cause: Cause
    step: int
    kind: str  # of record.KINDS
    name: str  # tensor, layer or parameter
    why: str  # the evidence for the cause, one sentence with numbers
    shard: int | None = None
    worker: int | None = None  # whose value differs
    distance: float | None = None  # relative

    def __str__(self) -> str:
        place = [f"step {self.step}", f"{self.kind} {self.name}".rstrip()]
        place += [] if self.shard is None else [f"shard {self.shard}"]
        place += [] if self.worker is None else [f"worker {self.worker}"]
        return f"{self.cause}: {', '.join(place)}: {self.why} ({MEANING[self.cause]})"
