"""The stretches of parameters that one worker sends to another, when workers are on several hosts.

Partial sums are joined within a host first, in the tree's order; between hosts each node of the tree
that a host holds goes once to every worker that updates that stretch:

    up to two hosts   every host updates every stretch: each gives its sums to the other
    three and more    one worker of all owns a stretch: the other hosts give it their sums, and get
                      the new values back; with stale gradients as with two hosts

    host 0                                    host 1
    worker 0 owns [0,k)  -- sums of [0,k) --> worker 2 owns [0,k)
    worker 1 owns [k,n)  <-- sums of [k,n) -- worker 3 owns [k,n)

With two hosts both ways cost the same bytes, and swapped sums can all travel while backward runs.
For H hosts of which each holds one node, G bytes of gradient cost each host G (H = 2) or
2 (H-1)/H G, as many as a ring's. With stale gradients it is (H-1) G for any H: sums have whole steps to come in,
and new values would have none (docs/sync-stale.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from samestep.parallel.gradients.layout import Layout, Piece, share_pieces
from samestep.parallel.gradients.ownership import Ownership


@dataclass(frozen=True)
class Stretch:
    """Elements start..stop-1 of an entry, from one worker to another of a different host."""

    sender: int
    receiver: int
    entry: int
    start: int
    stop: int


def by_host(workers: Iterable[int], hosts: Sequence[int]) -> dict[int, list[int]]:
    """Workers of each host, hosts in the order in which they come."""
    found: dict[int, list[int]] = {}
    for rank in workers:
        found.setdefault(hosts[rank], []).append(rank)
    return found


def owners(layout: Layout, ownership: Sequence[Ownership], hosts: Sequence[int], *, whole: bool) -> list[list[Piece]]:
    """The pieces that each worker updates, in the layout's order. `whole`: only whole parameters."""
    found: list[list[Piece]] = [[] for _ in hosts]
    for one in dict.fromkeys(ownership):
        entries = [i for i, other in enumerate(ownership) if other == one]
        groups = list(by_host(one.workers, hosts).values())
        for group in groups if len(groups) <= 2 or one.on_every_host else [list(one.workers)]:
            shares = share_pieces(layout, len(group), whole=one.is_slice or whole, entries=entries)
            for rank, share in zip(group, shares, strict=True):
                found[rank] += share
    return [sorted(pieces, key=lambda piece: piece.entry) for pieces in found]


def is_swapped(ownership: Ownership, hosts: Sequence[int]) -> bool:
    """Whether each of several hosts updates all of an entry; else one host does, or each of several a part."""
    groups = by_host(ownership.workers, hosts)
    return len(groups) == 2 or (len(groups) > 2 and ownership.on_every_host)


def is_first(one: Ownership, hosts: Sequence[int], rank: int) -> bool:
    """Whether worker `rank`'s host is the first of those that update the same, or the only one."""
    return not is_swapped(one, hosts) or hosts[rank] == next(iter(by_host(one.workers, hosts)))


class Stretches:
    """gradients: partial sums to the owners; values: new values to the hosts that compute with them;
    everywhere: values to the hosts that do not, which evaluation and saving need."""

    def __init__(
        self, layout: Layout, ownership: Sequence[Ownership], hosts: Sequence[int], pieces: Sequence[Sequence[Piece]]
    ) -> None:
        self._layout, self._ownership, self._hosts = layout, ownership, hosts
        self._of_entry: dict[int, dict[int, list[tuple[int, Piece]]]] = {}  # by entry, then host
        for rank, owned in enumerate(pieces):
            for piece in owned:
                self._of_entry.setdefault(piece.entry, {}).setdefault(hosts[rank], []).append((rank, piece))
        self._workers = by_host(range(len(hosts)), hosts)
        self.gradients = [s for entry, _ in layout.owners() for s in self._gradients(entry)]
        self.values, self.everywhere = list[Stretch](), list[Stretch]()
        for entry, _ in layout.owners():
            users = {hosts[rank] for name in (entry, *layout.aliases(entry)) for rank in ownership[name].workers}
            for host in self._workers:
                if host not in self._of_entry.get(entry, {}) or not self._swapped(entry):
                    (self.values if host in users else self.everywhere).extend(self._values(entry, host))

    def _swapped(self, entry: int) -> bool:
        return is_swapped(self._ownership[entry], self._hosts)

    def _gradients(self, entry: int) -> Iterable[Stretch]:
        owned, swapped = self._of_entry.get(entry, {}), self._swapped(entry)
        for name in (entry, *self._layout.aliases(entry)):
            for host, workers in by_host(self._ownership[name].workers, self._hosts).items():
                foreign = [own for other, pieces in owned.items() if other != host for own in pieces]
                for i, (owner, piece) in enumerate(foreign):
                    # Two hosts that want the same sums get them from the same worker, which adds them up once.
                    speaker = workers[(entry if swapped else i) % len(workers)]
                    for sender, start, stop in self._spoken(host, speaker, piece):
                        yield Stretch(sender, owner, name, start, stop)

    def _spoken(self, host: int, speaker: int, piece: Piece) -> Iterable[tuple[int, int, int]]:
        """The workers of `host` that join its sums of a piece and send them: its own owners, else the speaker."""
        own = self._of_entry.get(piece.entry, {}).get(host)
        if own is None or not self._swapped(piece.entry):
            yield speaker, piece.start, piece.stop
            return
        for sender, other in own:
            start, stop = max(piece.start, other.start), min(piece.stop, other.stop)
            if start < stop:
                yield sender, start, stop

    def _values(self, entry: int, host: int) -> Iterable[Stretch]:
        """New values for a host that does not compute them itself; if two others do, the first one sends them."""
        owned = list(self._of_entry.get(entry, {}).items())
        makers = [pieces for other, pieces in (owned[:1] if self._swapped(entry) else owned) if other != host]
        workers = self._workers[host]
        for i, (owner, piece) in enumerate(own for pieces in makers for own in pieces):
            yield Stretch(owner, workers[i % len(workers)], entry, piece.start, piece.stop)
