"""Orders: generators of schedules, each under its picture."""

from collections.abc import Iterator

from samestep.schedule.actions import (
    Action,
    Agree,
    Backward,
    Clip,
    Forward,
    Load,
    Lockstep,
    MergeBuffers,
    Publish,
    Reduce,
    Update,
)


def data_parallel(shards: range, *, lockstep: bool, clip: bool) -> Iterator[Action]:
    """One step of a worker that holds `shards`, whole model on every worker.

    Four shards on two workers (F forward, B backward of a shard; A agree, R reduce, U update,
    P publish; the bars are where workers wait for one another):

        worker 0   F0 B0 F1 B1 | A R U | P
        worker 1   F2 B2 F3 B3 | A R U | P

    A worker without shards still agrees, reduces, updates and publishes: it owns its pieces.
    """
    yield Load()
    if lockstep and shards:
        yield Lockstep(tuple(shards))
    else:
        for shard in shards:
            yield Forward(shard)
            yield Backward(shard)
    yield Agree()
    yield Reduce()
    yield MergeBuffers()
    if clip:
        yield Clip()
    yield Update()
    yield Publish()
