"""Passes: lower the order of a worker's sets to the full list of its actions.

    F1.0 of a set of shards 0, 1; segments dense, sliced, dense; the worker owns shard 1:

        Receive(1) | Forward(1) | SliceForward(0..1) | Forward(1) | Send(1)

    B1.0 is the mirror:

        ReceiveGradient(1) | [Recompute(1)] Backward(1) | SliceBackward(0..1) | ... | SendGradient(1)

W1.0 of a stage that splits its backwards makes the gradients of weights that Backward deferred:

        BackwardWeight(1) | BackwardWeight(1)        of the later dense segment, of the earlier one

A stage whose next stage is on the same worker sends nothing.

The end of a step is that of the sync policy:

    exact        Agree Reduce MergeBuffers [Clip] Update Publish
    stale(s)     Agree MergeBuffers Await(s) Reduce [Clip] Post Update Publish
                 Agree MergeBuffers Post Publish                        in the first s steps

Post comes after the last exchange between hosts in a step: posted bytes occupy the wire before later messages.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from samestep.errors import PlanRefused
from samestep.schedule import actions
from samestep.schedule.grid import Grid
from samestep.schedule.orders.pipeline import order_named
from samestep.schedule.orders.work import Kind, Work, Works
from samestep.schedule.places import Places, places


def schedule_of(
    grid: Grid,
    order: str | tuple[Works, ...],
    rank: int,
    *,
    depth: int = 1,
    clip: bool,
    lockstep: bool = False,
    stale: int = 0,
    filling: bool = False,
) -> actions.Schedule:
    """One step of worker `rank`. `order` is a name of `pipeline.ORDERS`, or what `written.parse_order` read.

    stale: the age in steps of the gradients that an update uses; filling: in this step there are none yet.

    Raises PlanRefused for a depth below 1, and for shards that cannot meet.
    """
    if lockstep:
        shards = grid.meeting_shards(rank)
        work: Iterable[actions.Action] = [actions.Lockstep(shards)] if shards else ()
    else:
        if isinstance(order, str) and depth < 1:
            raise PlanRefused(f"depth={depth}: a worker's warm-up is 1 or more times that of plain 1f1b")
        works = order_named(order)(grid, rank, depth) if isinstance(order, str) else order[rank]
        where = places(grid)
        work = chain.from_iterable(PASSES[one.kind](where, one, rank) for one in works)
    return (actions.Load(), *work, *tail(clip, stale, filling=filling))


def tail(clip: bool, stale: int = 0, *, filling: bool = False) -> Iterator[actions.Action]:
    """The end of a step: all workers, together."""
    yield actions.Agree()
    if stale:
        yield actions.MergeBuffers()
        if not filling:
            yield actions.Await(stale)
            yield actions.Reduce()
    else:
        yield actions.Reduce()
        yield actions.MergeBuffers()
    if clip and not filling:
        yield actions.Clip()
    if stale:
        yield actions.Post()
    if not filling:
        yield actions.Update()
    yield actions.Publish()


def forward(where: Places, work: Work, rank: int) -> Iterator[actions.Action]:
    stage, shards = work.stage, where.sets[work.set_index]
    own = where.own(rank, stage, shards)
    for shard, peer in shards_of_others(where, own, stage - 1, rank):
        yield actions.Receive(shard, stage - 1, peer)
    for segment in where.segments[stage]:
        if where.sliced[segment]:
            yield actions.SliceForward(shards, segment)
        else:
            yield from (actions.Forward(shard, segment) for shard in own)
    for shard, peer in shards_of_others(where, own, stage + 1, rank):
        yield actions.Send(shard, stage, peer)


def backward(where: Places, work: Work, rank: int) -> Iterator[actions.Action]:
    stage, shards = work.stage, where.sets[work.set_index]
    own = where.own(rank, stage, shards)
    for shard, peer in shards_of_others(where, own, stage + 1, rank):
        yield actions.ReceiveGradient(shard, stage, peer)
    for segment in reversed(where.segments[stage]):
        if where.sliced[segment]:
            yield actions.SliceBackward(shards, segment)
            continue
        for shard in own:
            if where.grid.stages[stage].recompute:
                yield actions.Recompute(shard, segment)
            yield actions.Backward(shard, segment)
    for shard, peer in shards_of_others(where, own, stage - 1, rank):
        yield actions.SendGradient(shard, stage - 1, peer)


def backward_weight(where: Places, work: Work, rank: int) -> Iterator[actions.Action]:
    own = where.own(rank, work.stage, where.sets[work.set_index])
    for segment in reversed(where.segments[work.stage]):
        if not where.sliced[segment]:
            yield from (actions.BackwardWeight(shard, segment) for shard in own)


PASSES: dict[Kind, Callable[[Places, Work, int], Iterator[actions.Action]]] = {
    "F": forward,
    "B": backward,
    "W": backward_weight,
}


def shards_of_others(where: Places, own: Iterable[int], stage: int, rank: int) -> Iterator[tuple[int, int]]:
    """Those of a worker's `own` shards that another worker computes at `stage`, with that worker."""
    if 0 <= stage < len(where.owner):
        for shard in own:
            if where.owner[stage][shard] != rank:
                yield shard, where.owner[stage][shard]
