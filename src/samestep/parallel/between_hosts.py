"""Partial sums and new values, between the hosts of a run.

    begin    expect the sums that others will send          (before the step's first forward)
    ready    a parameter's own gradients are folded: what is complete leaves while backward goes on
    finish   bring the host's sums together, send the rest, wait for what comes
    publish  new values to the hosts that do not make them themselves

Only what a host's workers have brought together leaves it; see `stretches.py` for who sends what.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samestep.parallel.home import Holder, Home
from samestep.parallel.layout import Layout, Piece
from samestep.parallel.parcels import Parcel, in_parcels
from samestep.parallel.stretches import Stretch, Stretches
from samestep.transport.base import Transport
from samestep.transport.hosts import FREE
from samestep.transport.links import Links
from samestep.tree import Node, fold_plan

Source = tuple[Node, Tensor]  # a partial sum: of which node, 1-D
VALUES = FREE
SUMS = FREE + (1 << 20)  # tags of the parcels with values, of those with sums


@dataclass(frozen=True)
class Joined:
    """How a host's partial sums become as few as the tree allows: additions (into, other), then what is left where."""

    holders: tuple[Holder, ...]
    additions: tuple[tuple[int, int], ...]  # positions of holders
    left: tuple[tuple[Node, int], ...]  # with the position of the holder that has it


def joined(home: Home, host: int, hosts: Sequence[int], num_units: int) -> Joined:
    """What the workers of `host` publish of an entry of `home`, brought together."""
    nodes, holders = home.published(num_units)
    here = [(n, h) for n, h in zip(nodes, holders, strict=True) if hosts[h[0]] == host]
    plan = fold_plan(tuple(node for node, _ in here), num_units)
    additions: list[tuple[int, int]] = []
    stack: list[int] = []
    for position, fold in enumerate(plan.folds):
        carry = position
        for slot in fold.into:
            additions.append((stack[slot], carry))
            carry = stack[slot]
        del stack[fold.into[-1] + 1 if fold.into else fold.slot :]
        if not fold.into:
            stack.append(position)
    return Joined(tuple(h for _, h in here), tuple(additions), tuple(zip(plan.left, stack, strict=True)))


@dataclass
class Route:
    """What one worker sends and gets in a step with a certain number of shards."""

    outgoing: list[Parcel] = field(default_factory=list)
    needs: dict[int, set[int]] = field(default_factory=dict)  # entries of the parcels that are this worker's alone
    incoming: list[Parcel] = field(default_factory=list)
    joins: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # added into the first
    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # joined elements, per entry
    arrived: dict[tuple[int, Piece], dict[Node, Tensor]] = field(default_factory=dict)  # by host
    read: int = 0  # bytes that other workers computed


class BetweenHosts:
    """One worker's side. `slots[w]` are the published slots of worker w, if it is of this host."""

    def __init__(
        self,
        layout: Layout,
        homes: Sequence[Home],
        transport: Transport,
        stretches: Stretches,
        pieces: Sequence[Piece],
        slots: Sequence[Sequence[Tensor]],
        values: Tensor,
    ) -> None:
        """pieces: what this worker updates."""
        assert transport.links is not None, "several hosts have links"
        self._links: Links = transport.links
        self._layout, self._homes, self._transport = layout, homes, transport
        self._stretches, self._slots, self._values = stretches, slots, values
        self._pieces: dict[int, list[Piece]] = {}  # by name: a tied parameter's pieces serve all its names
        for piece in pieces:
            for entry in (piece.entry, *layout.aliases(piece.entry)):
                self._pieces.setdefault(entry, []).append(Piece(entry, piece.start, piece.stop))
        self._routes: dict[int, Route] = {}
        self._route = Route()
        self._ready: set[int] = set()
        self._posted: set[int] = set()

    def begin(self, num_shards: int) -> None:
        if num_shards not in self._routes:
            self._routes[num_shards] = self._route_of(num_shards)
        self._route = self._routes[num_shards]
        self._ready.clear()
        self._posted.clear()
        for parcel in self._route.incoming:
            parcel.expect(self._links)

    def ready(self, entry: int) -> None:
        """This worker's own gradients of an entry are folded."""
        self._ready.add(entry)
        for number, needs in self._route.needs.items():
            if number not in self._posted and entry in needs and needs <= self._ready:
                self._post(number)

    def finish(self) -> None:
        """Call it when all workers of the host have published."""
        for into, other in self._route.joins:
            into.add_(other)
        for number in range(len(self._route.outgoing)):
            if number not in self._posted:
                self._post(number)
        for parcel in self._route.incoming:
            parcel.unpack()
            self._transport.counted.wired += parcel.nbytes
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
            if any(a <= piece.start and piece.stop <= b for a, b in route.ranges.get(entry, ())):
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

    def _post(self, number: int) -> None:
        self._posted.add(number)
        self._route.outgoing[number].post(self._links)

    def _alone(self, entries: Iterable[int]) -> bool:
        """Whether no other worker of this host has gradients of these entries."""
        here = self._near()
        return all(here.intersection(self._homes[entry].workers) == {self._transport.rank} for entry in entries)

    def _near(self) -> set[int]:
        hosts = self._transport.hosts
        return {rank for rank, host in enumerate(hosts) if host == hosts[self._transport.rank]}

    def _arrived(self, route: Route, host: int, piece: Piece) -> list[Source]:
        dtype = self._layout.entries[piece.entry].param.dtype
        arrived = route.arrived.get((host, piece), {})
        return [(node, memory.view(dtype)) for node, memory in arrived.items()]

    def _route_of(self, num_shards: int) -> Route:
        rank, hosts = self._transport.rank, self._transport.hosts
        route = Route()
        here = {i: joined(home, hosts[rank], hosts, num_shards) for i, home in enumerate(self._homes)}
        sent = [s for s in self._stretches.gradients if s.sender == rank]
        for entry in dict.fromkeys(s.entry for s in sent):
            route.ranges[entry] = merged([(s.start, s.stop) for s in sent if s.entry == entry])
            how = here[entry]
            for start, stop in route.ranges[entry]:
                piece = Piece(entry, start, stop)
                parts = [self._part(holder, entry, piece) for holder in how.holders]
                route.joins += [(parts[into], parts[other]) for into, other in how.additions]
                route.read += sum(
                    part.numel() * part.element_size()
                    for part, (holder, _) in zip(parts, how.holders, strict=True)
                    if holder != rank
                )

        def outgoing(s: Stretch) -> list[Tensor]:
            how = here[s.entry]
            piece = Piece(s.entry, s.start, s.stop)
            return [self._part(how.holders[i], s.entry, piece).view(torch.uint8) for _, i in how.left]

        def incoming(s: Stretch) -> list[Tensor]:
            """Its part of the memory for the whole piece, of which other stretches may bring the rest."""
            size = self._layout.entries[s.entry].param.element_size()
            piece = next(p for p in self._pieces[s.entry] if p.start <= s.start < p.stop)
            arrived = route.arrived.setdefault((hosts[s.sender], piece), {})
            views = []
            for node, _ in joined(self._homes[s.entry], hosts[s.sender], hosts, num_shards).left:
                if node not in arrived:
                    arrived[node] = torch.empty((piece.stop - piece.start) * size, dtype=torch.uint8)
                views.append(arrived[node][(s.start - piece.start) * size : (s.stop - piece.start) * size])
            route.read += sum(map(len, views))
            return views

        gradients = self._stretches.gradients[::-1]  # the last layers' gradients come first
        route.incoming = [parcel for parcel, _ in self._parcels(gradients, SUMS, incoming, sends=False)]
        for number, (parcel, entries) in enumerate(self._parcels(gradients, SUMS, outgoing, sends=True)):
            route.outgoing.append(parcel)
            if self._alone(entries):
                route.needs[number] = entries
        return route

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
        return [self._layout.flat(self._values, s.entry)[s.start : s.stop].view(torch.uint8)]

    def _part(self, holder: Holder, entry: int, piece: Piece) -> Tensor:
        rank, slot = holder
        return self._layout.flat(self._slots[rank][slot], entry)[piece.start : piece.stop]


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges without overlap that cover the same, in order."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found
