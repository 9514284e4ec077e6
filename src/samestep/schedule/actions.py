"""Actions of a worker in a step, as plain values. A schedule is a list of them.

A *stage* is a run of consecutive *segments*. A dense segment is computed shard by shard, by the worker
that holds the shard; a sliced one jointly for a *set* of consecutive shards, every worker of the stage
computing its slices. Segments are numbered from 0 over the whole network.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Take the rows of this worker's shards."""


@dataclass(frozen=True)
class Forward:
    """Forward of a shard through a dense segment."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class Recompute:
    """A second forward of a shard through a dense segment that kept nothing for backward."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class Backward:
    """Backward of a shard through a dense segment; a stage that splits its backwards defers gradients of weights."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class BackwardWeight:
    """The gradients of weights that the backward of a shard through a dense segment deferred."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class SliceForward:
    """Forward of a set of shards through this worker's slices of a sliced segment. The whole stage meets."""

    shards: range
    segment: int


@dataclass(frozen=True)
class SliceBackward:
    """Backward of a set of shards through this worker's slices. The whole stage meets."""

    shards: range
    segment: int


@dataclass(frozen=True)
class Send:
    """Send a shard's activations over the cut after `stage`, to the worker that continues with it."""

    shard: int
    stage: int
    peer: int


@dataclass(frozen=True)
class Receive:
    """Receive a shard's activations over the cut after `stage`, from the worker that computed them."""

    shard: int
    stage: int
    peer: int


@dataclass(frozen=True)
class SendGradient:
    """Send the gradient of a shard's activations back over the cut after `stage`."""

    shard: int
    stage: int
    peer: int


@dataclass(frozen=True)
class ReceiveGradient:
    """Receive the gradient of a shard's activations over the cut after `stage`."""

    shard: int
    stage: int
    peer: int


@dataclass(frozen=True)
class Lockstep:
    """Forward and backward of several shards at once, which wait for one another where they must meet."""

    shards: tuple[int, ...]


@dataclass(frozen=True)
class Agree:
    """Exchange losses, weights and which parameters have a gradient; every partial gradient is then readable."""


@dataclass(frozen=True)
class Reduce:
    """Sum the partial gradients of the owned pieces, in the tree's order."""


@dataclass(frozen=True)
class MergeBuffers:
    """Merge the shards' buffers into the step's."""


@dataclass(frozen=True)
class Clip:
    """Scale the gradient down to the largest allowed norm."""


@dataclass(frozen=True)
class Update:
    """One optimizer and scheduler step on the owned pieces."""


@dataclass(frozen=True)
class Post:
    """Start sending this step's partial gradients to the workers that will sum them in a later step."""


@dataclass(frozen=True)
class Await:
    """Wait for all partial gradients of the step `age` steps ago, which Reduce, Clip and Update then use."""

    age: int


@dataclass(frozen=True)
class Publish:
    """Wait until every worker has updated; the new parameters are then readable."""


@dataclass(frozen=True)
class LocalStep:
    """A logical worker's own optimizer and scheduler step, from the gradients of its own shards (local SGD)."""

    worker: int


@dataclass(frozen=True)
class Average:
    """Average the logical workers' parameters over the owned pieces, summed in the tree's order."""


ShardAction = Forward | Recompute | Backward | BackwardWeight | SliceForward | SliceBackward | Lockstep
Message = Send | Receive | SendGradient | ReceiveGradient
StepAction = Agree | Reduce | MergeBuffers | Clip | Update | Publish | Post | Await | LocalStep | Average
Action = Load | ShardAction | Message | StepAction
Schedule = tuple[Action, ...]

COMMUNICATION = (Send, Receive, SendGradient, ReceiveGradient, Agree, Reduce, Publish, Post, Await, Average)
"""The actions that move bytes between workers; all others compute."""

RECORDED_AS: dict[type[Action], str] = {LocalStep: "StepApart"}
"""Names in traces and predictions that differ from the class's: files outlive a renamed class."""


def class_name(kind: type[Action]) -> str:
    """The name by which traces, predictions and reports refer to a class of actions."""
    return RECORDED_AS.get(kind, kind.__name__)
