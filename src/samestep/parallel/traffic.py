"""The bytes of tensors that a step moves between workers, by the plan alone.

    cuts        per shard: the values that cross, and their gradients back; the random streams' state
    slices      per set: rows to the holders, outputs back, and both ways once more (see joint.py)
    gradients   per parameter: partial sums that the owner of a piece reads from others

Data parallelism moves parameters, slices and stages move activations: which is less differs by layer.
A transport counts what it moved; the two agree (tests/test_traffic.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from samestep import streams
from samestep.parallel.bundles import HEAD
from samestep.parallel.cut import Cut, Segment
from samestep.parallel.home import Home
from samestep.parallel.joint import Meeting, meeting_of
from samestep.parallel.layout import Layout, Piece
from samestep.plan import Plan
from samestep.tree import local_plan


@dataclass(frozen=True)
class Traffic:
    """Bytes per step, over all workers."""

    cuts: int = 0
    slices: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.cuts + self.slices + self.gradients


def traffic(
    plan: Plan,
    structure: Cut | None,
    layout: Layout,
    homes: Sequence[Home],
    pieces: Sequence[Sequence[Piece]],
    rows: Sequence[int],
) -> Traffic:
    """rows: of every shard of a step. `structure` was recorded with the rows of the first shard."""
    found = Traffic(gradients=gradient_bytes(plan, layout, homes, pieces, len(rows)))
    if structure is None:
        return found
    scale = [count / rows[0] for count in rows]
    cuts = sum(
        _crossing_bytes(structure, stage, scale[shard])
        for stage in range(len(plan.stages) - 1)
        for shard in range(len(rows))
        if _worker_of(plan, stage, shard) != _worker_of(plan, stage + 1, shard)
    )
    slices = sum(
        _region_bytes(plan, structure, segment, shards, scale)
        for segment in structure.segments
        if segment.region is not None
        for shards in plan.grid(len(rows), structure.sliced).sets
    )
    return Traffic(cuts, slices, found.gradients)


def gradient_bytes(
    plan: Plan, layout: Layout, homes: Sequence[Home], pieces: Sequence[Sequence[Piece]], num_shards: int
) -> int:
    """What the owners of pieces read of other workers' partial sums."""
    sets = -(-num_shards // plan.set_size(num_shards))
    total = 0
    for rank, owned in enumerate(pieces):
        for piece in owned:
            for entry in (piece.entry, *layout.aliases(piece.entry)):
                home = homes[entry]
                _, holders = home.published(sets if home.is_slice else num_shards)
                size = layout.entries[entry].param.element_size() * (piece.stop - piece.start)
                total += size * sum(holder != rank for holder, _ in holders)
    return total


def _worker_of(plan: Plan, stage: int, shard: int) -> int:
    ranks = chain.from_iterable(
        [w] * n for w, n in zip(plan.stages[stage].workers, plan.stages[stage].assign, strict=True)
    )
    return list(ranks)[shard]


def _crossing_bytes(structure: Cut, stage: int, scale: float) -> int:
    crossing = structure.crossings[stage]
    there = sum(structure.nbytes[value] for value in crossing)
    back = sum(structure.nbytes[value] for value in crossing if value in structure.floats)
    return round((there + back) * scale) + streams.leave().numel() + 2 * (HEAD.size + len(crossing))


def _region_bytes(plan: Plan, structure: Cut, segment: Segment, shards: range, scale: Sequence[float]) -> int:
    region, stage = segment.region, plan.stages[segment.stage]
    assert region is not None
    held = {rank: plan.shards_of(rank, len(scale), segment.stage) for rank in stage.workers}
    counts = dict(stage.slices)[region.column]
    total = 0
    for rank in stage.workers:
        meeting = meeting_of(rank, stage.workers, counts, held, shards)
        share = sum(scale[shard] for shard in meeting.own_shards)
        total += round(share * _bytes_per_share(structure, segment, meeting))
    return total


def _bytes_per_share(structure: Cut, segment: Segment, meeting: Meeting) -> float:
    """What the rows of one shard of the first one's size cost their worker, there and back, twice."""
    region = segment.region
    assert region is not None
    x, y = structure.nbytes[region.takes], structure.nbytes[region.makes]
    others = {holder: own for holder, own in meeting.slices.items() if holder != meeting.rank}
    nodes = sum(len(local_plan(own, meeting.num_slices).left) for own in others.values())
    columns = sum(map(len, others.values())) / meeting.num_slices
    needs_dx = region.takes in structure.floats and region.takes >= structure.num_inputs
    outputs = nodes * y if region.is_summed else columns * y
    gradients = len(others) * y if region.is_summed else columns * y
    return len(others) * x + outputs + gradients + (nodes * x if needs_dx else 0)
