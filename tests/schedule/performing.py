"""A second executor of schedules, which has values instead of rules: what a shard carries is where it was last.

It visits the workers in a random order, one action at a time. Whoever lacks an input fails.
"""

from collections.abc import Sequence
from random import Random

from samestep.schedule.actions import (
    Action,
    Backward,
    BackwardWeight,
    Forward,
    Receive,
    ReceiveGradient,
    Recompute,
    Schedule,
    Send,
    SendGradient,
    SliceBackward,
    SliceForward,
)
from samestep.schedule.grid import Grid
from samestep.schedule.simulator import MEETINGS, TAIL


class Missing(Exception):
    """An input is not there, or gradients are not in order."""


class Desk:
    """What a worker has: the outputs and gradients of segments, per shard; and what it keeps for backwards."""

    def __init__(self) -> None:
        self.outputs: set[tuple[int, int]] = set()
        self.gradients: set[tuple[int, int]] = set()  # of the output of a segment
        self.kept: set[tuple[int, int]] = set()
        self.graphs: set[tuple[int, int]] = set()
        self.later: set[tuple[int, int]] = set()  # gradients of weights that are still to be made
        self.loaded = False
        self.folded: dict[tuple[int, bool], int] = {}  # per segment, in B or W: the last shard that was added

    def demand(self, there: bool) -> None:
        if not there:
            raise Missing

    def fold(self, shard: int, segment: int, late: bool = False) -> None:
        self.demand(self.folded.get((segment, late), -1) < shard)
        self.folded[segment, late] = shard


class Performance:
    def __init__(self, grid: Grid, schedules: Sequence[Schedule], capacity: int) -> None:
        self.grid, self.schedules, self.capacity = grid, schedules, capacity
        self.stage_of = [s for s in range(len(grid.stages)) for _ in grid.segments_of(s)]
        self.desks = [Desk() for _ in schedules]
        self.at = [0] * len(schedules)
        self.boxes: dict[tuple[int, int], list[tuple[str, int, int]]] = {}

    def action(self, rank: int) -> Action | None:
        return self.schedules[rank][self.at[rank]] if self.at[rank] < len(self.schedules[rank]) else None

    def step(self, rank: int) -> bool:
        """One action of a worker; False if it must wait."""
        action = self.action(rank)
        if action is None:
            return False
        if isinstance(action, MEETINGS):
            here = self.grid.stages[self.stage_of[getattr(action, "segment", 0)]]
            group = range(len(self.desks)) if isinstance(action, TAIL) else here.workers
            if any(self.action(member) != action for member in group):
                return False
            for member in group:
                self.do(member, action)
                self.at[member] += 1
            return True
        if isinstance(action, Send | SendGradient) and len(self.box(rank, action.peer)) >= self.capacity:
            return False
        if isinstance(action, Receive | ReceiveGradient) and self.name(action) not in self.box(action.peer, rank):
            return False
        self.do(rank, action)
        self.at[rank] += 1
        return True

    def box(self, source: int, to: int) -> list[tuple[str, int, int]]:
        return self.boxes.setdefault((source, to), [])

    def name(self, action: Send | SendGradient | Receive | ReceiveGradient) -> tuple[str, int, int]:
        return "GRAD" if "Gradient" in type(action).__name__ else "ACT", action.shard, action.stage

    def do(self, rank: int, action: Action) -> None:
        desk, grid = self.desks[rank], self.grid
        if isinstance(action, Send):
            desk.demand((action.shard, grid.segments_of(action.stage)[-1]) in desk.outputs)
            self.box(rank, action.peer).append(self.name(action))
        elif isinstance(action, SendGradient):
            desk.demand((action.shard, grid.segments_of(action.stage)[-1]) in desk.gradients)
            self.box(rank, action.peer).append(self.name(action))
        elif isinstance(action, Receive | ReceiveGradient):
            self.box(action.peer, rank).remove(self.name(action))
            cell = action.shard, grid.segments_of(action.stage)[-1]
            (desk.outputs if isinstance(action, Receive) else desk.gradients).add(cell)
        elif isinstance(action, BackwardWeight):
            desk.demand((action.shard, action.segment) in desk.later)
            desk.later.remove((action.shard, action.segment))
            desk.fold(action.shard, action.segment, late=True)
        elif isinstance(action, Forward | Backward | Recompute):
            self.compute(desk, action)
        elif isinstance(action, SliceForward | SliceBackward):
            self.slice(desk, rank, action)
        elif not isinstance(action, TAIL):
            desk.loaded = True

    def compute(self, desk: Desk, action: Forward | Backward | Recompute) -> None:
        cell, before = (action.shard, action.segment), (action.shard, action.segment - 1)
        if isinstance(action, Forward):
            desk.demand(desk.loaded if action.segment == 0 else before in desk.outputs)
            desk.outputs.add(cell)
            desk.kept.add(cell)
            if not self.grid.stages[self.stage_of[action.segment]].recompute:
                desk.graphs.add(cell)
        elif isinstance(action, Recompute):
            desk.demand(cell in desk.kept)
            desk.graphs.add(cell)
        else:
            desk.demand(cell in desk.graphs)
            desk.demand(cell in desk.gradients or action.segment == len(self.stage_of) - 1)
            desk.graphs.remove(cell)
            desk.kept.remove(cell)
            desk.fold(*cell)
            desk.gradients.add(before)
            if self.grid.stages[self.stage_of[action.segment]].split:
                desk.later.add(cell)

    def slice(self, desk: Desk, rank: int, action: SliceForward | SliceBackward) -> None:
        own = self.grid.stages[self.stage_of[action.segment]].shards_of(rank, self.grid.num_shards)
        rows = [shard for shard in action.shards if shard in own]
        cell = action.shards.start, action.segment
        if isinstance(action, SliceForward):
            desk.demand(all((shard, action.segment - 1) in desk.outputs for shard in rows))
            desk.outputs |= {(shard, action.segment) for shard in rows}
            desk.graphs.add(cell)
        else:
            desk.demand(cell in desk.graphs)
            desk.graphs.remove(cell)
            desk.demand(all((shard, action.segment) in desk.gradients for shard in rows))
            desk.fold(*cell)
            desk.gradients |= {(shard, action.segment - 1) for shard in rows}


def performs(grid: Grid, schedules: Sequence[Schedule], capacity: int, random: Random) -> bool:
    """Whether all workers come to their end, with everything they need."""
    performance = Performance(grid, schedules, capacity)
    try:
        while True:
            ranks = random.sample(range(len(schedules)), len(schedules))
            if not any(performance.step(rank) for rank in ranks):
                break
    except Missing:
        return False
    ended = all(performance.action(rank) is None for rank in range(len(schedules)))
    kept = any(desk.graphs or desk.later for desk in performance.desks)
    return ended and not any(performance.boxes.values()) and not kept
