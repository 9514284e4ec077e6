"""The sliced regions of a cut model, as one worker has them."""

from collections.abc import Callable

from torch import nn

from samestep.parallel.cutting.slices import SlicedRegion
from samestep.parallel.gradients.linear import Place
from samestep.plan.plan import Plan
from samestep.setup.laid_out_model import LaidOutModel


def regions_of(
    prepared: LaidOutModel, plan: Plan, rank: int, place_of: Callable[[nn.Parameter], Place]
) -> dict[int, SlicedRegion]:
    """By segment, the region with the slices of worker `rank`, which may be none."""
    assert prepared.structure is not None, "a plan with stages has cut the model"
    regions: dict[int, SlicedRegion] = {}
    for number, segment in enumerate(prepared.structure.segments):
        if (region := segment.region) is not None:
            stage = plan.stages[segment.stage]
            counts, own = dict(stage.slices)[region.column], range(0)
            if rank in stage.workers:
                i = stage.workers.index(rank)
                own = range(sum(counts[:i]), sum(counts[: i + 1]))
            row = None if region.row is None else prepared.sliced[region.row]
            regions[number] = SlicedRegion(region, prepared.sliced[region.column], row, own, prepared.model, place_of)
    return regions
