"""The ownership of a parameter: whose shards bring its gradient, and who updates it.

whole layer of a stage     every shard once, from the stage's worker that computes it; the group's
                           workers share the sum and the update
slice of a layer           every join set once, all from the slice's one owner
"""

from dataclasses import dataclass
from itertools import accumulate

from samestep.numerics.reduction_tree import Node, local_plan
from samestep.plan.plan import Plan
from samestep.sync.staleness import steps_stale

Holder = tuple[int, int]  # worker, slot


@dataclass(frozen=True)
class Ownership:
    """Units are shards, or for a slice join sets; `assign[i]` consecutive ones belong to `workers[i]`."""

    workers: tuple[int, ...]
    assign: tuple[int, ...]
    is_slice: bool = False
    on_every_host: bool = False  # each host sums and updates all of it, however many hosts there are

    def units_of(self, rank: int, num_units: int) -> range:
        """The units of a step with `num_units` whose gradients worker `rank` computes."""
        if rank not in self.workers:
            return range(0)
        ends = list(accumulate(self.assign, initial=0))
        i = self.workers.index(rank)
        return range(min(ends[i], num_units), min(ends[i + 1], num_units))

    def published(self, num_units: int) -> tuple[tuple[Node, ...], tuple[Holder, ...]]:
        """The nodes that the workers publish in a step, in unit order, and who holds each in which slot."""
        nodes: list[Node] = []
        holders: list[Holder] = []
        for rank in self.workers:
            left = local_plan(self.units_of(rank, num_units), num_units).left
            nodes += left
            holders += [(rank, slot) for slot in range(len(left))]
        return tuple(nodes), tuple(holders)

    def slots_of(self, rank: int) -> int:
        """Slots that worker `rank` publishes at most, whatever the number of units in a step."""
        sizes = range(1, sum(self.assign) + 1)
        return max(1, *(len(local_plan(self.units_of(rank, n), n).left) for n in sizes))

    def kept_slots(self, rank: int) -> int:
        """Slots that worker `rank` fills at most while it folds its units, published or not."""
        sizes = range(1, sum(self.assign) + 1)
        plans = [local_plan(self.units_of(rank, n), n) for n in sizes]
        return max(1, *(fold.slot + 1 for plan in plans for fold in plan.folds if not fold.into), 1)

    def adds(self, rank: int) -> bool:
        """Whether worker `rank` adds a unit's gradient to another's."""
        units = sum(self.assign)
        return any(fold.into for fold in local_plan(self.units_of(rank, units), units).folds)


def stage_ownership(plan: Plan, stage: int) -> Ownership:
    """The ownership of the whole layers of a stage."""
    if not plan.stages:
        return Ownership(tuple(range(plan.workers)), plan.assign, on_every_host=steps_stale(plan) > 0)
    return Ownership(plan.stages[stage].workers, plan.stages[stage].assign)


def slice_ownership(plan: Plan, owner: int) -> Ownership:
    """The ownership of a slice that worker `owner` computes."""
    shards = plan.numerics.shards
    return Ownership((owner,), (-(-shards // plan.set_size(shards)),), is_slice=True)


def num_published(plan: Plan, ownership: set[Ownership], rank: int) -> int:
    """Slots in fabric memory that worker `rank` needs for the gradients of a step.

    None when it works alone, unless they outlive the step.
    """
    if plan.workers == 1 and not steps_stale(plan):
        return 0
    return max(1, *(one.slots_of(rank) for one in ownership))


def most_published(plan: Plan) -> int:
    """Slots that a worker of a plan without stages needs at most, for any assignment of shards: a run of leaves is two
    blocks per level of the tree at most."""
    return 2 * plan.numerics.shards.bit_length()
