"""The bytes of tensors that a step moves between workers, by the plan alone.

    cuts        per shard: the values that cross, and their gradients back; the random streams' state
    slices      per set: rows to the holders, outputs back, and both ways once more (see joint.py)
    gradients   per parameter: partial sums that the owner of a piece reads from others

Data parallelism moves parameters, slices and stages move activations: which is less differs by layer.
A transport counts what it moved; the two agree (its test holds that). What of it goes from host to host is
told apart: only that takes a network's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from samestep.numerics import random_streams
from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.cutting.cut import Cut, Segment
from samestep.parallel.execution.bundles import HEAD
from samestep.parallel.execution.joint import JoinGroup, meeting_of
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.host_exchange import joined
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.stretches import Stretch, Stretches
from samestep.plan.plan import Plan


@dataclass(frozen=True)
class Traffic:
    """Bytes per step, over all workers."""

    cuts: int = 0
    slices: int = 0
    gradients: int = 0
    values: int = 0  # new parameters, for hosts that do not make them

    @property
    def total(self) -> int:
        return self.cuts + self.slices + self.gradients + self.values


def traffic(
    plan: Plan,
    structure: Cut | None,
    layout: Layout,
    homes: Sequence[Ownership],
    pieces: Sequence[Sequence[Piece]],
    rows: Sequence[int],
    hosts: Sequence[int],
    edges: CompressedEdges | None = None,
) -> tuple[Traffic, Traffic]:
    """All of it, and what goes from host to host.

    rows: of every shard of a step; `structure` was recorded with the rows of the first shard. edges: that a codec
    makes smaller, on the wire alone.
    """
    stretches = Stretches(layout, homes, hosts, pieces)
    values = sum(_nbytes(layout, s) for s in stretches.values)
    sums = sum(_sum_bytes(layout, homes, hosts, s, len(rows), edges) for s in stretches.gradients)
    gradients = sums + gradient_bytes(plan, layout, homes, pieces, len(rows), hosts, stretches)
    if structure is None:
        return Traffic(gradients=gradients, values=values), Traffic(gradients=sums, values=values)
    scale = [count / rows[0] for count in rows]
    cuts = dict.fromkeys((True, False), 0)  # by whether it leaves the host
    for stage in range(len(plan.stages) - 1):
        for shard in range(len(rows)):
            a, b = _worker_of(plan, stage, shard), _worker_of(plan, stage + 1, shard)
            if a != b:
                cuts[hosts[a] != hosts[b]] += _crossing_bytes(structure, stage, scale[shard])
    near, far = (
        sum(
            _region_bytes(plan, structure, segment, shards, scale, hosts, far=far)
            for segment in structure.segments
            if segment.region is not None
            for shards in plan.grid(len(rows), structure.sliced).sets
        )
        for far in (False, True)
    )
    return Traffic(sum(cuts.values()), near + far, gradients, values), Traffic(cuts[True], far, sums, values)


def gradient_bytes(
    plan: Plan,
    layout: Layout,
    homes: Sequence[Ownership],
    pieces: Sequence[Sequence[Piece]],
    num_shards: int,
    hosts: Sequence[int],
    stretches: Stretches,
) -> int:
    """What workers read of other workers' partial sums within their host."""
    sets = -(-num_shards // plan.set_size(num_shards))
    read = {(rank, Piece(entry, piece.start, piece.stop)) for rank, owned in enumerate(pieces) for piece in owned
            for entry in (piece.entry, *layout.aliases(piece.entry))}  # fmt: skip
    for s in stretches.gradients:  # who sends a stretch has read it; an owner has read what it owns already
        if not any(p.entry == s.entry and p.start <= s.start < p.stop for r, p in read if r == s.sender):
            read.add((s.sender, Piece(s.entry, s.start, s.stop)))
    total = 0
    for rank, piece in read:
        home = homes[piece.entry]
        _, holders = home.published(sets if home.is_slice else num_shards)
        size = layout.entries[piece.entry].param.element_size() * (piece.stop - piece.start)
        total += size * sum(holder != rank and hosts[holder] == hosts[rank] for holder, _ in holders)
    return total


def _nbytes(layout: Layout, s: Stretch) -> int:
    return (s.stop - s.start) * layout.entries[s.entry].param.element_size()


def _sum_bytes(
    layout: Layout,
    homes: Sequence[Ownership],
    hosts: Sequence[int],
    s: Stretch,
    num_shards: int,
    edges: CompressedEdges | None,
) -> int:
    """Of the sums in a stretch: one for each node that the sender's host is left with."""
    piece, total = Piece(s.entry, s.start, s.stop), 0
    for node, _ in joined(homes[s.entry], hosts[s.sender], hosts, num_shards).left:
        if edges is not None and edges.applies_to(node, s.entry, num_shards):
            total += sum(tensor.nbytes for tensor in edges.packed_like(piece))
        else:
            total += _nbytes(layout, s)
    return total


def _worker_of(plan: Plan, stage: int, shard: int) -> int:
    held = plan.stages[stage].shards_by_worker(plan.numerics.shards)
    return next(worker for worker, own in held.items() if shard in own)


def _crossing_bytes(structure: Cut, stage: int, scale: float) -> int:
    crossing = structure.crossings[stage]
    there = sum(structure.nbytes[value] for value in crossing)
    back = sum(structure.nbytes[value] for value in crossing if value in structure.floats)
    return (
        round((there + back) * scale)
        + random_streams.pack(random_streams.leave()).numel()
        + 2 * (HEAD.size + len(crossing))
    )


def _region_bytes(
    plan: Plan,
    structure: Cut,
    segment: Segment,
    shards: range,
    scale: Sequence[float],
    hosts: Sequence[int],
    *,
    far: bool,
) -> int:
    """From worker to worker on other hosts (`far`), or on the same one."""
    region, stage = segment.region, plan.stages[segment.stage]
    assert region is not None
    held = {rank: plan.shards_of(rank, len(scale), segment.stage) for rank in stage.workers}
    counts = dict(stage.slices)[region.column]
    total = 0
    for rank in stage.workers:
        meeting = meeting_of(rank, stage.workers, counts, held, shards)
        share = sum(scale[shard] for shard in meeting.own_shards)
        others = [holder for holder in meeting.slices if holder != rank and (hosts[holder] != hosts[rank]) == far]
        total += round(share * _bytes_per_share(structure, segment, meeting, others))
    return total


def _bytes_per_share(structure: Cut, segment: Segment, meeting: JoinGroup, holders: Sequence[int]) -> float:
    """What the rows of one shard of the first one's size cost between their worker and some holders of slices, there
    and back, twice."""
    region = segment.region
    assert region is not None
    x, y = structure.nbytes[region.takes], structure.nbytes[region.makes]
    others = {holder: meeting.slices[holder] for holder in holders}
    nodes = sum(len(local_plan(own, meeting.num_slices).left) for own in others.values())
    columns = sum(map(len, others.values())) / meeting.num_slices
    needs_dx = region.takes in structure.floats and region.takes >= structure.num_inputs
    outputs = nodes * y if region.is_summed else columns * y
    gradients = len(others) * y if region.is_summed else columns * y
    return len(others) * x + outputs + gradients + (nodes * x if needs_dx else 0)
