"""Hosts for tests: several thread fabrics under one baton, joined by thread links."""

from collections import deque
from collections.abc import Sequence

from torch import Tensor

from samestep.transport.baton import Baton
from samestep.transport.hosts import HostsTransport
from samestep.transport.threads import ThreadFabric, ThreadLinks


class ThreadHosts:
    """Every worker a thread of this process; `hosts[r]` is the host that worker r pretends to be on."""

    def __init__(self, hosts: Sequence[int]) -> None:
        self.hosts = tuple(hosts)
        self._baton, self._gone = Baton(), set[int]()
        self._board: dict[tuple[int, int, int], deque[Tensor]] = {}
        self.fabrics = [ThreadFabric(self.hosts.count(h), self._baton) for h in range(max(hosts) + 1)]

    def endpoint(self, rank: int) -> HostsTransport:
        """Worker `rank`'s transport. Call it once, in that worker's thread."""
        host = self.hosts[rank]
        local = self.fabrics[host].endpoint(self.hosts[:rank].count(host))
        return HostsTransport(rank, self.hosts, local, ThreadLinks(rank, self._board, self._gone, self._baton))
