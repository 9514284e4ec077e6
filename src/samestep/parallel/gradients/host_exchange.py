"""Partial sums and new values, between the hosts of a run.

    begin    expect the sums that others will send          (before the step's first forward)
    ready    a parameter's own gradients are folded: what is complete leaves while backward goes on
    finish   join the host's sums, send the rest (post), wait for those of others (arrive)
    publish  new values to the hosts that do not compute them themselves

Only sums that a host's workers have joined leave it; `host_routes.py` finds the messages.
"""

import platform

from torch import Tensor

from samestep.numerics.reduction_tree import Node
from samestep.parallel.gradients.host_routes import HostRoutes, Route
from samestep.parallel.gradients.layout import Piece
from samestep.parallel.gradients.reduction import OneHost, Source
from samestep.transport.links import Links
from samestep.transport.transport import Transport

IN_ORDER = platform.machine() in ("x86_64", "AMD64")  # other processors see a core's writes in order


class HostExchange(OneHost):
    """One worker's side of the exchange between several hosts."""

    def __init__(self, routes: HostRoutes, transport: Transport, folded: Tensor) -> None:
        """folded: (workers, entries) uint8, in memory of the host."""
        assert transport.links is not None, "several hosts have links"
        self._links: Links = transport.links
        self._routes, self._route, self._transport = routes, Route(), transport
        self._folded, self._step = folded.cpu().numpy(), 0
        self._workers_here = routes.workers_here()  # per entry
        self._ready: set[int] = set()  # entries whose sums may leave
        self._posted: set[int] = set()

    def continue_from(self, before: OneHost) -> None:
        """Count steps on from an earlier exchange, whose marks are still in the memory that the host shares."""
        assert isinstance(before, HostExchange), "the number of hosts stays"
        self._step = before._step

    def begin(self, num_shards: int) -> None:
        self._route = self._routes.route(num_shards)
        self._ready.clear()
        self._posted.clear()
        self._step = self._step % 255 + 1
        for parcel in self._route.incoming:
            parcel.expect(self._links)

    def ready(self, entry: int) -> None:
        """Note that this worker's own gradients of an entry are folded, and send what all of the host have folded."""
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
        """Whether all workers of this host have folded an entry. Elsewhere than on x86, a mark may be seen before what
        it stands for."""
        others = self._workers_here[entry]
        if len(others) > 1 and not IN_ORDER:
            return False
        return bool((self._folded[others, entry] == self._step).all())

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

    def publish(self, *, everywhere: bool = False) -> None:
        outgoing, incoming = self._routes.value_parcels(everywhere=everywhere)
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

    def sources(self, piece: Piece, num_units: int) -> list[Source]:
        return self._routes.sources(piece, num_units) if self._routes.is_spread(piece.entry) else []

    def crossed(self, piece: Piece, num_units: int) -> set[Node]:
        return self._routes.crossed(piece, num_units) if self._routes.is_spread(piece.entry) else set()

    def _prepare(self, entry: int) -> None:
        self._ready.add(entry)
        for operation in self._route.prepare.get(entry, ()):
            operation()

    def _post(self, number: int) -> None:
        self._posted.add(number)
        self._route.outgoing[number].post(self._links)
