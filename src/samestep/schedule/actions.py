"""Actions: what a worker does in a step, as plain values. A schedule is a list of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Take the rows of this worker's shards."""


@dataclass(frozen=True)
class Forward:
    shard: int


@dataclass(frozen=True)
class Backward:
    shard: int


@dataclass(frozen=True)
class Lockstep:
    """Forward and backward of several shards at once, which stop where they must meet."""

    shards: tuple[int, ...]


@dataclass(frozen=True)
class Agree:
    """Exchange losses, weights and what got a gradient; every partial gradient is then readable."""


@dataclass(frozen=True)
class Reduce:
    """Sum the partial gradients of the owned pieces, in the tree's order."""


@dataclass(frozen=True)
class MergeBuffers:
    """Form the step's buffers from those of the shards."""


@dataclass(frozen=True)
class Clip:
    """Scale the gradient down to the largest norm allowed."""


@dataclass(frozen=True)
class Update:
    """One optimizer and scheduler step on the owned pieces."""


@dataclass(frozen=True)
class Publish:
    """Wait until every worker has updated; the new parameters are then readable."""


Action = Load | Forward | Backward | Lockstep | Agree | Reduce | MergeBuffers | Clip | Update | Publish
Schedule = tuple[Action, ...]
