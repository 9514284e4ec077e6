"""Actions: what a worker does in a step, as plain values. A schedule is a list of them.

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
    """A shard through a dense segment."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class Recompute:
    """The same forward once more, because what backward needs was not kept."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class Backward:
    """In a stage that splits its backwards, the gradients of weights that can come later are left for later."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class BackwardWeight:
    """The gradients of weights that the backward of a shard through a dense segment left for later."""

    shard: int
    segment: int = 0


@dataclass(frozen=True)
class SliceForward:
    """A set of shards through this worker's slices of a sliced segment. The whole stage meets."""

    shards: range
    segment: int


@dataclass(frozen=True)
class SliceBackward:
    shards: range
    segment: int


@dataclass(frozen=True)
class Send:
    """What a shard carries over the cut after `stage`, to the worker that goes on with it."""

    shard: int
    stage: int
    peer: int


@dataclass(frozen=True)
class Receive:
    """What a shard carries over the cut after `stage`, from the worker that computed it."""

    shard: int
    stage: int
    peer: int


@dataclass(frozen=True)
class SendGradient:
    """The gradient of what a shard carried over the cut after `stage`, back to where it came from."""

    shard: int
    stage: int
    peer: int


@dataclass(frozen=True)
class ReceiveGradient:
    shard: int
    stage: int
    peer: int


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
class Post:
    """Let this step's partial gradients go to the workers that will sum them, in a later step."""


@dataclass(frozen=True)
class Await:
    """Wait for all partial gradients of the step `age` steps ago; Reduce, Clip and Update are then about those."""

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
    """The mean of the logical workers' parameters, of the owned pieces, summed in the tree's order."""


Action = (
    Load
    | Forward
    | Recompute
    | Backward
    | BackwardWeight
    | SliceForward
    | SliceBackward
    | Send
    | Receive
    | SendGradient
    | ReceiveGradient
    | Lockstep
    | Agree
    | Reduce
    | MergeBuffers
    | Clip
    | Update
    | Publish
    | Post
    | Await
    | LocalStep
    | Average
)
Schedule = tuple[Action, ...]

COMMUNICATION = (Send, Receive, SendGradient, ReceiveGradient, Agree, Reduce, Publish, Post, Await, Average)
"""The actions that move bytes between workers; all others compute."""

RECORDED_AS: dict[type[Action], str] = {LocalStep: "StepApart"}
"""Names in traces and predictions that differ from the class's: files outlive a renamed class."""


def class_name(kind: type[Action]) -> str:
    """The name by which traces, predictions and reports refer to a class of actions."""
    return RECORDED_AS.get(kind, kind.__name__)
