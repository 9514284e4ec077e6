"""One worker's work in a step, found once for all steps with as many shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samestep.numerics.reduction_tree import Fold, local_plan
from samestep.parallel.gradients.compressed_edges import CompressedEdges, CompressedFold
from samestep.parallel.gradients.ownership import Ownership
from samestep.plan.plan import Plan


@dataclass(frozen=True)
class StepWork:
    """One worker's shards of a step, and how it folds their gradients."""

    shards: Sequence[int]  # that it computes, in any stage
    num_sets: int  # join sets of the step
    units: Sequence[range]  # per entry of the layout: the shards, of a slice the join sets, whose gradients it computes
    folds: Sequence[Mapping[int, tuple[Fold, CompressedFold | None]]]  # per stage, by shard


def step_work(
    plan: Plan, rank: int, ownership: Sequence[Ownership], edges: CompressedEdges | None, num_shards: int
) -> StepWork:
    """The work of worker `rank` in a step with `num_shards` shards. edges: of the tree, that a codec applies to."""
    num_sets = -(-num_shards // plan.set_size(num_shards))
    folds = []
    for stage in range(max(1, len(plan.stages))):
        own = plan.shards_of(rank, num_shards, stage)
        fold_plan = local_plan(own, num_shards)
        crossing = None if edges is None else CompressedFold(edges, fold_plan.left, num_shards)
        folds.append({shard: (fold, crossing) for shard, fold in zip(own, fold_plan.folds, strict=True)})
    units = [one.units_of(rank, num_sets if one.is_slice else num_shards) for one in ownership]
    return StepWork(list(plan.touched(rank, num_shards)), num_sets, units, folds)
