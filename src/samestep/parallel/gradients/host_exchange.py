"""Partial sums and new values, between the hosts of a run.

    begin    expect the sums that others will send          (before the step's first forward)
    ready    a parameter's own gradients are folded: what is complete leaves while backward goes on
    finish   bring the host's sums together, send the rest (post), wait for what comes (arrive)
    publish  new values to the hosts that do not make them themselves

Only what a host's workers have brought together leaves it; see `stretches.py` for who sends what.
"""

import platform
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
from samestep.parallel.gradients.stretches import Stretch, Stretches
from samestep.transport.hosts import FREE, KIND
from samestep.transport.links import Links
from samestep.transport.transport import Transport

Source = tuple[Node, Tensor]  # a partial sum: of which node, 1-D
IN_ORDER = platform.machine() in ("x86_64", "AMD64")  # other processors see a core's writes in order
VALUES = FREE
SUMS = FREE + KIND  # tags of the parcels with values, of those with sums


@dataclass(frozen=True)
class HostPartials:
    """A host's partial sums, and what is left of them when they are as few as the tree allows."""

    holders: tuple[Holder, ...]
    left: tuple[tuple[Node, int], ...]  # with the position of the holder that has it then


def joined(home: Ownership, host: int, hosts: Sequence[int], num_units: int) -> HostPartials:
    """What the workers of `host` publish of an entry of `home`, brought together."""
    nodes, holders = home.published(num_units)
    here = [(n, h) for n, h in zip(nodes, holders, strict=True) if hosts[h[0]] == host]
    plan = fold_plan(tuple(node for node, _ in here), num_units)
    positions: dict[int, int] = {}  # of the holder, by slot of the fold
    for position, fold in enumerate(plan.folds):
        if not fold.into:
            positions[fold.slot] = position
    left = tuple((node, positions[slot]) for slot, node in enumerate(plan.left))
    return HostPartials(tuple(h for _, h in here), left)


@dataclass
class Route:
    """What one worker sends and gets in a step with a certain number of shards."""

    outgoing: list[Parcel] = field(default_factory=list)
    needs: list[set[int]] = field(default_factory=list)  # the entries in each of them
    incoming: list[Parcel] = field(default_factory=list)
    prepare: dict[int, list[Callable[[], object]]] = field(default_factory=dict)  # before an entry's sums leave
    unpack: list[Callable[[], None]] = field(default_factory=list)  # when all has come
    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # elements that leave, per entry
    packed: dict[tuple[int, int, Node], list[Tensor]] = field(default_factory=dict)  # by entry and start
    arrived: dict[tuple[int, Piece], dict[Node, Tensor]] = field(default_factory=dict)  # by host
    read: int = 0  # bytes that other workers computed


class HostExchange:
    """One worker's side. `slots[w]` are the published slots of worker w, if it is of this host."""

    def __init__(
        self,
        layout: Layout,
        homes: Sequence[Ownership],
        transport: Transport,
        stretches: Stretches,
        pieces: Sequence[Piece],
        slots: Sequence[Sequence[Tensor]],
        values: Tensor,
        folded: Tensor,
        edges: CompressedEdges | None = None,
    ) -> None:
        """pieces: what this worker updates. folded: (workers, entries) uint8, in memory of the host. edges: of the
        reduction tree, that a codec applies to."""
        assert transport.links is not None, "several hosts have links"
        self._links: Links = transport.links
        self._layout, self._homes, self._transport = layout, homes, transport
        self._stretches, self._slots, self._values, self._edges = stretches, slots, values, edges
        self._cuts: dict[tuple[int, int], list[int]] = {}  # by sender and entry: where any of its stretches ends
        for s in stretches.gradients:
            self._cuts.setdefault((s.sender, s.entry), []).extend((s.start, s.stop))
        self._pieces: dict[int, list[Piece]] = {}  # by name: a tied parameter's pieces serve all its names
        for piece in pieces:
            for entry in (piece.entry, *layout.aliases(piece.entry)):
                self._pieces.setdefault(entry, []).append(Piece(entry, piece.start, piece.stop))
        self._routes: dict[int, Route] = {}
        self._route = Route()
        self._folded, self._step = folded.cpu().numpy(), 0
        near = self._near()
        self._with = [sorted(near.intersection(home.workers)) for home in homes]  # workers of this host, per entry
        self._ready: set[int] = set()  # entries whose sums may leave
        self._posted: set[int] = set()

    def go_on_from(self, before: "HostExchange") -> None:
        """Count on: marks of the step before are still in the memory that workers of a host share."""
        self._step = before._step

    def begin(self, num_shards: int) -> None:
        if num_shards not in self._routes:
            self._routes[num_shards] = self._route_of(num_shards)
        self._route = self._routes[num_shards]
        self._ready.clear()
        self._posted.clear()
        self._step = self._step % 255 + 1
        for parcel in self._route.incoming:
            parcel.expect(self._links)

    def ready(self, entry: int) -> None:
        """This worker's own gradients of an entry are folded. What all workers of the host have folded may leave."""
        self._folded[self._transport.rank, entry] = self._step
        for number, needs in enumerate(self._route.needs):
            if number in self._posted:
                continue
            if not all(other in self._ready or self._is_folded(other) for other in needs):
                return  # parcels leave in the order in which gradients come
            for other in needs - self._ready:
                self._prepare(other)
            self._post(number)

    def _is_folded(self, entry: int) -> bool:
        """Whether by all workers of this host. Elsewhere than on x86, a mark may be seen before what it stands for."""
        others = self._with[entry]
        if len(others) > 1 and not IN_ORDER:
            return False
        return bool((self._folded[others, entry] == self._step).all())

    def finish(self) -> None:
        """Call it when all workers of the host have published."""
        self.post()
        self.arrive()

    def post(self) -> None:
        for entry in self._route.prepare.keys() - self._ready:
            self._prepare(entry)
        for number in range(len(self._route.outgoing)):
            if number not in self._posted:
                self._post(number)

    def arrive(self) -> None:
        for parcel in self._route.incoming:
            parcel.unpack()
            self._transport.counted.wired += parcel.nbytes
        for unpack in self._route.unpack:
            unpack()
        for parcel in self._route.outgoing:
            parcel.wait()
        self._transport.counted.moved += self._route.read

    def is_spread(self, entry: int) -> bool:
        """Whether workers of other hosts have gradients of an entry."""
        return not self._near().issuperset(self._homes[entry].workers)

    def sources(self, entry: int, piece: Piece, num_shards: int) -> list[Source]:
        """All partial sums of a piece of this worker's, after `finish`, in shard order."""
        route, home = self._routes[num_shards], self._homes[entry]
        own = self._transport.hosts[self._transport.rank]
        found: list[Source] = []
        for host in dict.fromkeys(self._transport.hosts[rank] for rank in home.workers):
            if host != own:
                found += self._arrived(route, host, Piece(entry, piece.start, piece.stop))
                continue
            here = joined(home, own, self._transport.hosts, num_shards)
            if self._leaves(route, entry, piece):
                found += [(node, self._part(here.holders[i], entry, piece)) for node, i in here.left]
                continue
            for node, holder in zip(*home.published(num_shards), strict=True):
                if holder in here.holders:
                    found.append((node, self._part(holder, entry, piece)))
                    route.read += 0 if holder[0] == self._transport.rank else found[-1][1].nbytes
        return sorted(found, key=lambda source: source[0].first_shard())

    def publish(self, *, everywhere: bool = False) -> None:
        """New values to the hosts that compute with them and do not make them; or to the others."""
        stretches = self._stretches.everywhere if everywhere else self._stretches.values
        outgoing, incoming = (
            [parcel for parcel, _ in self._parcels(stretches, VALUES, self._values_of, sends=sends)]
            for sends in (True, False)
        )
        for parcel in incoming:
            parcel.expect(self._links)
        for parcel in outgoing:
            parcel.post(self._links)
        for parcel in incoming:
            parcel.unpack()
            self._transport.counted.wired += parcel.nbytes
            self._transport.counted.moved += sum(map(len, parcel.views))
        for parcel in outgoing:
            parcel.wait()

    def crossed(self, entry: int, piece: Piece, num_shards: int) -> set[Node]:
        """Of the `sources`, those that have crossed the edge to their parent."""
        hosts, own = self._transport.hosts, self._transport.hosts[self._transport.rank]
        home, leaves = self._homes[entry], self._leaves(self._routes[num_shards], entry, piece)
        there = [host for host in dict.fromkeys(hosts[rank] for rank in home.workers) if host != own or leaves]
        return {node for host in there for node, _ in joined(home, host, hosts, num_shards).left}

    def _leaves(self, route: Route, entry: int, piece: Piece) -> bool:
        """Whether this worker brings a piece together for other hosts too."""
        return any(start <= piece.start < stop for start, stop in route.ranges.get(entry, ()))

    def _prepare(self, entry: int) -> None:
        self._ready.add(entry)
        for operation in self._route.prepare.get(entry, ()):
            operation()

    def _post(self, number: int) -> None:
        self._posted.add(number)
        self._route.outgoing[number].post(self._links)

    def _near(self) -> set[int]:
        hosts = self._transport.hosts
        return {rank for rank, host in enumerate(hosts) if host == hosts[self._transport.rank]}

    def _arrived(self, route: Route, host: int, piece: Piece) -> list[Source]:
        return list(route.arrived.get((host, piece), {}).items())

    def _route_of(self, num_shards: int) -> Route:
        rank, route = self._transport.rank, Route()
        for s in self._stretches.gradients:
            if s.sender == rank and s.entry not in route.ranges:
                cuts = sorted(set(self._cuts[rank, s.entry]))
                mine = [o for o in self._stretches.gradients if o.sender == rank and o.entry == s.entry]
                inside = [(a, b) for a, b in pairwise(cuts) if any(o.start <= a and b <= o.stop for o in mine)]
                route.ranges[s.entry] = inside
                pieces = (Piece(s.entry, a, b) for a, b in inside)
                route.prepare[s.entry] = [op for piece in pieces for op in self._joining(route, piece, num_shards)]
        gradients = self._stretches.gradients[::-1]  # the last layers' gradients come first
        incoming = partial(self._incoming, route, num_shards)
        outgoing = partial(self._outgoing, route, num_shards)
        route.incoming = [parcel for parcel, _ in self._parcels(gradients, SUMS, incoming, sends=False)]
        for parcel, entries in self._parcels(gradients, SUMS, outgoing, sends=True):
            route.outgoing.append(parcel)
            route.needs.append(entries)
        return route

    def _joining(self, route: Route, piece: Piece, num_shards: int) -> Iterator[Callable[[], object]]:
        """What brings a host's sums of a piece together, each node crossing its edge."""
        rank, near, entry = self._transport.rank, self._near(), piece.entry
        published = zip(*self._homes[entry].published(num_shards), strict=True)
        here = [(node, self._part(h, entry, piece), h[0]) for node, h in published if h[0] in near]
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
        hosts = self._transport.hosts
        how = joined(self._homes[s.entry], hosts[s.sender], hosts, num_shards)
        views: list[Tensor] = []
        for piece in self._inside(s):
            for node, i in how.left:
                packed = route.packed.get((s.entry, piece.start, node))
                views += map(as_bytes, packed or [self._part(how.holders[i], s.entry, piece)])
        return views

    def _incoming(self, route: Route, num_shards: int, s: Stretch) -> list[Tensor]:
        """Parts of the memory for a whole piece, of which other stretches may bring the rest."""
        hosts, dtype = self._transport.hosts, self._layout.entries[s.entry].param.dtype
        whole = next(p for p in self._pieces[s.entry] if p.start <= s.start < p.stop)
        arrived = route.arrived.setdefault((hosts[s.sender], whole), {})
        views: list[Tensor] = []
        for piece in self._inside(s):
            for node, _ in joined(self._homes[s.entry], hosts[s.sender], hosts, num_shards).left:
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
        """What this worker sends or gets, with the entries in each parcel. Both sides come to the same parcels."""
        rank = self._transport.rank
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

    def _part(self, holder: Holder, entry: int, piece: Piece) -> Tensor:
        rank, slot = holder
        return self._layout.flat(self._slots[rank][slot], entry)[piece.start : piece.stop]


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
