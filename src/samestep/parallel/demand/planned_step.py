"""A step under a plan, as the counts of memory and traffic see it."""

from collections.abc import Sequence
from dataclasses import dataclass

from samestep.parallel.cutting.cut import Cut, Region, Segment
from samestep.parallel.execution.joint import JoinGroup, meeting_of
from samestep.plan.plan import Plan


@dataclass(frozen=True)
class PlannedStep:
    """One step: the plan, the forward in segments, and the number of shards, all as large as the recorded one."""

    plan: Plan
    cut: Cut
    num_shards: int

    def slices_of(self, segment: Segment) -> tuple[Region, Sequence[int]]:
        """A sliced segment's region, and the number of its slices on each worker of the stage."""
        assert segment.region is not None
        return segment.region, dict(self.plan.stages[segment.stage].slices)[segment.region.column]

    def join_group(self, rank: int, segment: Segment, shards: range) -> JoinGroup:
        """The workers that worker `rank` exchanges rows and slices with, for a set of shards."""
        workers = self.plan.stages[segment.stage].workers
        held = {worker: self.plan.shards_of(worker, self.num_shards, segment.stage) for worker in workers}
        return meeting_of(rank, workers, self.slices_of(segment)[1], held, shards)
