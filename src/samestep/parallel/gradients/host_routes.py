"""The messages between hosts, found once for every number of shards that a step may have.

A route says what one worker sends and receives in a step: which parcels, of which memory, and which sums of its host
have to be joined before a parcel may leave. `host_exchange.py` takes it; `stretches.py` says who sends what.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from samestep.numerics.reduction_tree import Node, fold_plan, promoted
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Holder, Ownership
from samestep.parallel.gradients.parcels import Parcel, in_parcels
from samestep.parallel.gradients.reduction import Source
from samestep.parallel.gradients.stretches import Stretch, Stretches
from samestep.transport.hosts import FREE, KIND
from samestep.transport.transport import Transport

VALUES = FREE
SUMS = FREE + KIND  # tags of the parcels with values, of those with sums


@dataclass(frozen=True)
class HostPartials:
    """A host's partial sums, and those that remain when they are joined as far as the tree allows."""

    holders: tuple[Holder, ...]
    left: tuple[tuple[Node, int], ...]  # with the position of the holder that has it then


def host_partials(ownership: Ownership, host: int, hosts: Sequence[int], num_units: int) -> HostPartials:
    """The partial sums that the workers of `host` publish of an entry, joined."""
    nodes, holders = ownership.published(num_units)
    here = [(n, h) for n, h in zip(nodes, holders, strict=True) if hosts[h[0]] == host]
    plan = fold_plan(tuple(node for node, _ in here), num_units)
    holder_of_slot = {fold.slot: holder for holder, fold in enumerate(plan.folds) if not fold.into}
    left = tuple((node, holder_of_slot[slot]) for slot, node in enumerate(plan.left))
    return HostPartials(tuple(h for _, h in here), left)


@dataclass
class Route:
    """The messages of one worker in a step with a certain number of shards."""

    outgoing: list[Parcel] = field(default_factory=list)
    needs: list[set[int]] = field(default_factory=list)  # the entries in each of them
    incoming: list[Parcel] = field(default_factory=list)
    prepare: dict[int, list[Callable[[], object]]] = field(default_factory=dict)  # before an entry's sums leave
    unpack: list[Callable[[], None]] = field(default_factory=list)  # when all has arrived
    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # elements that leave, per entry
    packed: dict[tuple[int, int, Node], list[Tensor]] = field(default_factory=dict)  # by entry and start
    arrived: dict[tuple[int, Piece], dict[Node, Tensor]] = field(default_factory=dict)  # by host
    read: int = 0  # bytes that other workers computed


class HostRoutes:
    """The routes of one worker. `slots[w]` are the published slots of worker w, if it is of this host."""

    def __init__(
        self,
        layout: Layout,
        ownership: Sequence[Ownership],
        transport: Transport,
        pieces: Sequence[Sequence[Piece]],
        slots: Sequence[Sequence[Tensor]],
        values: Tensor,
        edges: CompressedEdges | None = None,
    ) -> None:
        """pieces: those that each worker updates. values: the host's parameters. edges: of the reduction tree, that a
        codec applies to."""
        self.hosts, self.rank, self._layout, self._ownership = transport.hosts, transport.rank, layout, ownership
        self._slots, self._values, self._edges = slots, values, edges
        self._stretches = stretches = Stretches(layout, ownership, transport.hosts, pieces)
        self._cuts: dict[tuple[int, int], list[int]] = {}  # by sender and entry: where any of its stretches ends
        for s in stretches.gradients:
            self._cuts.setdefault((s.sender, s.entry), []).extend((s.start, s.stop))
        self._pieces: dict[int, list[Piece]] = {}  # by name: a tied parameter's pieces serve all its names
        for piece in pieces[transport.rank]:
            for entry in (piece.entry, *layout.aliases(piece.entry)):
                self._pieces.setdefault(entry, []).append(Piece(entry, piece.start, piece.stop))
        self._routes: dict[int, Route] = {}
        own = self.hosts[self.rank]
        self.on_this_host = {rank for rank, host in enumerate(self.hosts) if host == own}

    def workers_here(self) -> list[list[int]]:
        """The workers of this host that compute each entry's gradient."""
        return [sorted(self.on_this_host.intersection(one.workers)) for one in self._ownership]

    def route(self, num_shards: int) -> Route:
        """The messages of a step with `num_shards` shards."""
        if num_shards not in self._routes:
            self._routes[num_shards] = self._route_of(num_shards)
        return self._routes[num_shards]

    def value_parcels(self, *, everywhere: bool) -> tuple[list[Parcel], list[Parcel]]:
        """New values to send and to receive: for the hosts that compute with them, or for all others."""
        stretches = self._stretches.everywhere if everywhere else self._stretches.values
        sent = [parcel for parcel, _ in self._parcels(stretches, VALUES, self._values_of, sends=True)]
        return sent, [parcel for parcel, _ in self._parcels(stretches, VALUES, self._values_of, sends=False)]

    def is_spread(self, entry: int) -> bool:
        """Whether workers of other hosts have gradients of an entry."""
        return not self.on_this_host.issuperset(self._ownership[entry].workers)

    def sources(self, piece: Piece, num_units: int) -> list[Source]:
        """All partial sums of a piece of this worker's, once they have arrived, in shard order."""
        route, ownership = self.route(num_units), self._ownership[piece.entry]
        found: list[Source] = []
        for host in dict.fromkeys(self.hosts[rank] for rank in ownership.workers):
            if host != self.hosts[self.rank]:
                found += route.arrived.get((host, piece), {}).items()
                continue
            here = host_partials(ownership, host, self.hosts, num_units)
            if self._leaves(route, piece):
                found += [(node, self._part(here.holders[i], piece)) for node, i in here.left]
                continue
            for node, holder in zip(*ownership.published(num_units), strict=True):
                if holder in here.holders:
                    found.append((node, self._part(holder, piece)))
                    route.read += 0 if holder[0] == self.rank else found[-1][1].nbytes
        return sorted(found, key=lambda source: source[0].first_shard())

    def crossed(self, piece: Piece, num_units: int) -> set[Node]:
        """The nodes of `sources` that have crossed the edge to their parent."""
        hosts, own, ownership = self.hosts, self.hosts[self.rank], self._ownership[piece.entry]
        leaves = self._leaves(self.route(num_units), piece)
        there = [host for host in dict.fromkeys(hosts[rank] for rank in ownership.workers) if host != own or leaves]
        return {node for host in there for node, _ in host_partials(ownership, host, hosts, num_units).left}

    def _leaves(self, route: Route, piece: Piece) -> bool:
        """Whether this worker joins the host's sums of a piece for other hosts too."""
        return any(start <= piece.start < stop for start, stop in route.ranges.get(piece.entry, ()))

    def _route_of(self, num_shards: int) -> Route:
        rank, route = self.rank, Route()
        for s in self._stretches.gradients:
            if s.sender == rank and s.entry not in route.ranges:
                cuts = sorted(set(self._cuts[rank, s.entry]))
                mine = [o for o in self._stretches.gradients if o.sender == rank and o.entry == s.entry]
                inside = [(a, b) for a, b in pairwise(cuts) if any(o.start <= a and b <= o.stop for o in mine)]
                route.ranges[s.entry] = inside
                pieces = (Piece(s.entry, a, b) for a, b in inside)
                route.prepare[s.entry] = [op for piece in pieces for op in self._joining(route, piece, num_shards)]
        gradients = self._stretches.gradients[::-1]  # the last layers' gradients are ready first
        incoming = partial(self._incoming, route, num_shards)
        outgoing = partial(self._outgoing, route, num_shards)
        route.incoming = [parcel for parcel, _ in self._parcels(gradients, SUMS, incoming, sends=False)]
        for parcel, entries in self._parcels(gradients, SUMS, outgoing, sends=True):
            route.outgoing.append(parcel)
            route.needs.append(entries)
        return route

    def _joining(self, route: Route, piece: Piece, num_shards: int) -> Iterator[Callable[[], object]]:
        """The operations that join a host's sums of a piece, each node crossing its edge."""
        rank, entry = self.rank, piece.entry
        published = zip(*self._ownership[entry].published(num_shards), strict=True)
        here = [(node, self._part(h, piece), h[0]) for node, h in published if h[0] in self.on_this_host]
        plan, slots = fold_plan(tuple(node for node, _, _ in here), num_shards), dict[int, Tensor]()

        def crossing(node: Node, flat: Tensor) -> Iterator[Callable[[], object]]:
            if self._edges is None or not self._edges.applies_to(node, entry, num_shards):
                return
            packed = self._edges.packed_like(piece) if node in plan.left else None
            if packed is not None:
                route.packed[entry, piece.start, node] = packed
            yield partial(self._cross, node, piece, flat, num_shards, packed)

        for (node, flat, holder), fold in zip(here, plan.folds, strict=True):
            route.read += 0 if holder == rank else flat.nbytes
            yield from crossing(node, flat)
            for slot in fold.into:
                yield partial(slots[slot].add_, flat)
                flat, node = slots[slot], promoted(Node(node.level + 1, node.index >> 1), num_shards)
                yield from crossing(node, flat)
            if not fold.into:
                slots[fold.slot] = flat

    def _cross(self, node: Node, piece: Piece, flat: Tensor, num_shards: int, packed: list[Tensor] | None) -> None:
        assert self._edges is not None
        found = self._edges.cross(node, piece, flat, num_shards)
        for tensor, kept in zip(found, packed or (), strict=packed is not None):
            kept.copy_(tensor)

    def _inside(self, s: Stretch) -> Iterator[Piece]:
        """A stretch, cut wherever another one of its sender's begins or ends."""
        cuts = sorted(cut for cut in {*self._cuts[s.sender, s.entry]} if s.start <= cut <= s.stop)
        return (Piece(s.entry, a, b) for a, b in pairwise(cuts))

    def _outgoing(self, route: Route, num_shards: int, s: Stretch) -> list[Tensor]:
        hosts = self.hosts
        how = host_partials(self._ownership[s.entry], hosts[s.sender], hosts, num_shards)
        views: list[Tensor] = []
        for piece in self._inside(s):
            for node, i in how.left:
                packed = route.packed.get((s.entry, piece.start, node))
                views += map(as_bytes, packed or [self._part(how.holders[i], piece)])
        return views

    def _incoming(self, route: Route, num_shards: int, s: Stretch) -> list[Tensor]:
        """Parts of the memory for a whole piece, of which other stretches may bring the rest."""
        hosts, dtype = self.hosts, self._layout.entries[s.entry].param.dtype
        whole = next(p for p in self._pieces[s.entry] if p.start <= s.start < p.stop)
        arrived = route.arrived.setdefault((hosts[s.sender], whole), {})
        views: list[Tensor] = []
        for piece in self._inside(s):
            for node, _ in host_partials(self._ownership[s.entry], hosts[s.sender], hosts, num_shards).left:
                if node not in arrived:
                    arrived[node] = self._values.new_empty(whole.stop - whole.start, dtype=dtype)
                flat = arrived[node][piece.start - whole.start : piece.stop - whole.start]
                packed = [flat]
                if self._edges is not None and self._edges.applies_to(node, s.entry, num_shards):
                    packed = self._edges.packed_like(piece)
                    route.unpack.append(partial(self._edges.unpack, packed, piece, flat))
                views += map(as_bytes, packed)
        route.read += sum(map(len, views))
        return views

    def _parcels(
        self, stretches: Sequence[Stretch], tag: int, views_of: Callable[[Stretch], list[Tensor]], *, sends: bool
    ) -> Iterator[tuple[Parcel, set[int]]]:
        """The parcels that this worker sends or receives, with the entries in each; both sides find the same ones."""
        rank = self.rank
        mine = [s for s in stretches if (s.sender if sends else s.receiver) == rank]
        for peer in dict.fromkeys(s.receiver if sends else s.sender for s in mine):
            of_peer = [s for s in mine if (s.receiver if sends else s.sender) == peer]
            views = [(s.entry, view) for s in of_peer for view in views_of(s)]
            for number, together in enumerate(in_parcels([len(view) for _, view in views])):
                chosen = views[together.start : together.stop]
                parcel = Parcel(peer, tag + number, [view for _, view in chosen])
                yield parcel, {entry for entry, _ in chosen}

    def _values_of(self, s: Stretch) -> list[Tensor]:
        return [as_bytes(self._layout.flat(self._values, s.entry)[s.start : s.stop])]

    def _part(self, holder: Holder, piece: Piece) -> Tensor:
        rank, slot = holder
        return self._layout.flat(self._slots[rank][slot], piece.entry)[piece.start : piece.stop]


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
