"""Duties of each worker of a grid, and the actions that each action needs; independent of any order.

            Receive | Forward ... SliceForward ... Forward | Send
                         |               |            |                  each needs what is to its left and,
    SendGradient | Backward ... SliceBackward ... Backward | Receive-    backwards, to its right and above
                                                             Gradient

In a stage that splits its backwards every dense Backward also has a BackwardWeight, which nothing needs.
Needs are among the actions of one worker; dependencies on other workers come with a message or a meeting.
"""

from collections.abc import Iterator

from samestep.schedule import actions
from samestep.schedule.actions import Action
from samestep.schedule.places import Places


def duties(where: Places, rank: int) -> dict[Action, None]:
    """Every action of worker `rank` up to Agree, once each."""
    found: dict[Action, None] = {actions.Load(): None}
    for stage, here in enumerate(where.grid.stages):
        if rank in here.workers:
            own = where.own(rank, stage, range(where.grid.num_shards))
            found |= dict.fromkeys(compute_duties(where, stage, own))
            found |= dict.fromkeys(exchange_duties(where, stage, own, rank))
    return found


def compute_duties(where: Places, stage: int, own: tuple[int, ...]) -> Iterator[Action]:
    for segment in where.segments[stage]:
        if where.sliced[segment]:
            for shards in where.sets:
                yield actions.SliceForward(shards, segment)
                yield actions.SliceBackward(shards, segment)
            continue
        for shard in own:
            yield actions.Forward(shard, segment)
            yield actions.Backward(shard, segment)
            if where.grid.stages[stage].recompute:
                yield actions.Recompute(shard, segment)
            if where.grid.stages[stage].split:
                yield actions.BackwardWeight(shard, segment)


def exchange_duties(where: Places, stage: int, own: tuple[int, ...], rank: int) -> Iterator[Action]:
    for shard in own:
        before = where.owner[stage - 1][shard] if stage > 0 else rank
        after = where.owner[stage + 1][shard] if stage + 1 < len(where.owner) else rank
        if before != rank:
            yield actions.Receive(shard, stage - 1, before)
            yield actions.SendGradient(shard, stage - 1, before)
        if after != rank:
            yield actions.Send(shard, stage, after)
            yield actions.ReceiveGradient(shard, stage, after)


def needs(where: Places, rank: int, action: Action) -> Iterator[Action]:
    """The actions of the same worker that must come before one of its duties."""
    if isinstance(action, actions.Forward):
        yield input_of(where, rank, action.shard, action.segment)
    elif isinstance(action, actions.SliceForward):
        for shard in where.own(rank, where.stage_of[action.segment], action.shards):
            yield input_of(where, rank, shard, action.segment)
    elif isinstance(action, actions.Recompute):
        yield actions.Forward(action.shard, action.segment)
    elif isinstance(action, actions.Backward):
        redo = where.grid.stages[where.stage_of[action.segment]].recompute
        yield (actions.Recompute if redo else actions.Forward)(action.shard, action.segment)
        yield from gradient_of(where, rank, action.shard, action.segment)
    elif isinstance(action, actions.BackwardWeight):
        yield actions.Backward(action.shard, action.segment)
    elif isinstance(action, actions.SliceBackward):
        yield actions.SliceForward(action.shards, action.segment)
        for shard in where.own(rank, where.stage_of[action.segment], action.shards):
            yield from gradient_of(where, rank, shard, action.segment)
    elif isinstance(action, actions.Send):
        yield actions.Forward(action.shard, where.segments[action.stage][-1])
    elif isinstance(action, actions.SendGradient):
        yield actions.Backward(action.shard, where.segments[action.stage + 1][0])


def input_of(where: Places, rank: int, shard: int, segment: int) -> Action:
    """The action that provides the input of a segment."""
    stage = where.stage_of[segment]
    if segment == 0:
        return actions.Load()
    if segment == where.segments[stage][0] and where.owner[stage - 1][shard] != rank:
        return actions.Receive(shard, stage - 1, where.owner[stage - 1][shard])
    if where.sliced[segment - 1]:
        return actions.SliceForward(where.set_of[shard], segment - 1)
    return actions.Forward(shard, segment - 1)


def gradient_of(where: Places, rank: int, shard: int, segment: int) -> Iterator[Action]:
    """The action that provides the gradient of a segment's output; none for the last segment, which has the loss."""
    stage = where.stage_of[segment]
    if segment == len(where.sliced) - 1:
        return
    if segment == where.segments[stage][-1] and where.owner[stage + 1][shard] != rank:
        yield actions.ReceiveGradient(shard, stage, where.owner[stage + 1][shard])
    elif where.sliced[segment + 1]:
        yield actions.SliceBackward(where.set_of[shard], segment + 1)
    else:
        yield actions.Backward(shard, segment + 1)
