"""Traffic: the bytes of tensors that a step moves between workers, by the plan alone.

    cuts        per shard: the values that cross, and their gradients back; the random streams' state
    slices      per set: rows to the holders, outputs back, and both ways once more (see joint.py)
    gradients   per parameter: partial sums that the owner of a piece reads from others

Data parallelism moves parameters, slices and stages move activations: which is less differs by layer.
A transport counts the bytes that it moves; a test holds that the two agree. Bytes between hosts are counted
separately too: only they take a network's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from samestep.numerics import random_streams
from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.cutting.cut import Cut, Segment
from samestep.parallel.demand.planned_step import PlannedStep
from samestep.parallel.execution.bundles import HEAD
from samestep.parallel.execution.joint import JoinGroup
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.host_routes import host_partials
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.stretches import Stretch, Stretches
from samestep.plan.plan import Plan


@dataclass(frozen=True)
class Traffic:
    """Bytes per step, over all workers, by cause."""

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
    """Bytes moved in all, and the part of them that goes from host to host.

    rows: of every shard of a step; `structure` was recorded with the rows of the first shard. edges: where a codec
    makes sums smaller, on the wire alone.
    """
    num_sets = -(-len(rows) // plan.set_size(len(rows)))
    parameters = _ParameterBytes(layout, homes, pieces, hosts, len(rows), num_sets, edges)
    values, sums = parameters.values(), parameters.sums_between_hosts()
    gradients = sums + parameters.sums_within_hosts()
    if structure is None:
        return Traffic(gradients=gradients, values=values), Traffic(gradients=sums, values=values)
    activations = _ActivationBytes(PlannedStep(plan, structure, len(rows)), [n / rows[0] for n in rows], hosts)
    wired = Traffic(activations.cuts(between_hosts=True), activations.slices(between_hosts=True), sums, values)
    return Traffic(
        wired.cuts + activations.cuts(between_hosts=False),
        wired.slices + activations.slices(between_hosts=False),
        gradients,
        values,
    ), wired


@dataclass(frozen=True)
class _ParameterBytes:
    """Bytes of gradients, and of new values of parameters."""

    layout: Layout
    homes: Sequence[Ownership]
    pieces: Sequence[Sequence[Piece]]
    hosts: Sequence[int]
    num_shards: int
    num_sets: int
    edges: CompressedEdges | None

    @cached_property
    def _stretches(self) -> Stretches:
        return Stretches(self.layout, self.homes, self.hosts, self.pieces)

    def values(self) -> int:
        return sum(self._nbytes(stretch) for stretch in self._stretches.values)

    def sums_between_hosts(self) -> int:
        """Bytes of partial sums: in each stretch, one for each node that remains of the sender's host."""
        return sum(self._sums(stretch) for stretch in self._stretches.gradients)

    def sums_within_hosts(self) -> int:
        """Bytes that workers read of other workers' partial sums within their host."""
        read = {(rank, Piece(entry, piece.start, piece.stop)) for rank, owned in enumerate(self.pieces)
                for piece in owned for entry in (piece.entry, *self.layout.aliases(piece.entry))}  # fmt: skip
        for s in self._stretches.gradients:  # who sends a stretch has read it; an owner has read its own already
            if not any(p.entry == s.entry and p.start <= s.start < p.stop for r, p in read if r == s.sender):
                read.add((s.sender, Piece(s.entry, s.start, s.stop)))
        total = 0
        for rank, piece in read:
            home = self.homes[piece.entry]
            _, holders = home.published(self.num_sets if home.is_slice else self.num_shards)
            others = [holder for holder, _ in holders if holder != rank and self.hosts[holder] == self.hosts[rank]]
            total += self._nbytes(piece) * len(others)
        return total

    def _nbytes(self, part: Piece | Stretch) -> int:
        return (part.stop - part.start) * self.layout.entries[part.entry].param.element_size()

    def _sums(self, s: Stretch) -> int:
        piece, total = Piece(s.entry, s.start, s.stop), 0
        for node, _ in host_partials(self.homes[s.entry], self.hosts[s.sender], self.hosts, self.num_shards).left:
            if self.edges is not None and self.edges.applies_to(node, s.entry, self.num_shards):
                total += sum(tensor.nbytes for tensor in self.edges.packed_like(piece))
            else:
                total += self._nbytes(s)
        return total


@dataclass(frozen=True)
class _ActivationBytes:
    """Bytes of activations and of their gradients, between workers of one host or of two."""

    step: PlannedStep
    scale: Sequence[float]  # rows of each shard over rows of the first
    hosts: Sequence[int]

    def cuts(self, *, between_hosts: bool) -> int:
        total = 0
        for stage in range(len(self.step.plan.stages) - 1):
            senders, receivers = self._worker_of_shards(stage), self._worker_of_shards(stage + 1)
            for a, b, scale in zip(senders, receivers, self.scale, strict=True):
                if a != b and (self.hosts[a] != self.hosts[b]) == between_hosts:
                    total += self._crossing(stage, scale)
        return total

    def slices(self, *, between_hosts: bool) -> int:
        step = self.step
        return sum(
            self._region(segment, shards, between_hosts=between_hosts)
            for segment in step.cut.segments
            if segment.is_sliced
            for shards in step.plan.grid(step.num_shards, step.cut.sliced).sets
        )

    def _worker_of_shards(self, stage: int) -> list[int]:
        workers, assign = self.step.plan.stages[stage].workers, self.step.plan.stages[stage].assign
        return [worker for worker, count in zip(workers, assign, strict=True) for _ in range(count)]

    def _crossing(self, stage: int, scale: float) -> int:
        """Bytes that one shard brings over the cut after `stage`, there and back."""
        cut = self.step.cut
        crossing = cut.crossings[stage]
        there = sum(cut.nbytes[value] for value in crossing)
        back = sum(cut.nbytes[value] for value in crossing if value in cut.floats)
        streams = random_streams.pack(random_streams.leave()).numel()
        return round((there + back) * scale) + streams + 2 * (HEAD.size + len(crossing))

    def _region(self, segment: Segment, shards: range, *, between_hosts: bool) -> int:
        """Bytes that a set of shards moves for a sliced segment."""
        total = 0
        for rank in self.step.plan.stages[segment.stage].workers:
            group = self.step.join_group(rank, segment, shards)
            share = sum(self.scale[shard] for shard in group.own_shards)
            holders = [holder for holder in group.slices
                       if holder != rank and (self.hosts[holder] != self.hosts[rank]) == between_hosts]  # fmt: skip
            total += round(share * self._per_shard(segment, group, holders))
        return total

    def _per_shard(self, segment: Segment, group: JoinGroup, holders: Sequence[int]) -> float:
        """Bytes that a shard as large as the first costs between its worker and some holders of slices, forward and
        backward."""
        cut, region = self.step.cut, self.step.slices_of(segment)[0]
        x, y = cut.nbytes[region.takes], cut.nbytes[region.makes]
        slices = [group.slices[holder] for holder in holders]
        nodes = sum(len(local_plan(own, group.num_slices).left) for own in slices)
        columns = sum(map(len, slices)) / group.num_slices
        needs_dx = region.takes in cut.floats and region.takes >= cut.num_inputs
        outputs = nodes * y if region.is_summed else columns * y
        gradients = len(holders) * y if region.is_summed else columns * y
        return len(holders) * x + outputs + gradients + (nodes * x if needs_dx else 0)
