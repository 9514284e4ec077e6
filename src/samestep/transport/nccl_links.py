"""Links between GPUs over NCCL; what lies in the host's memory goes by other links.

NCCL knows no tags: between two workers it pairs what one sends with what the other receives in the
order in which both say so, and a send waits behind a receive of the same group. Here workers announce
receives long before they come, so each kind of message has a group of its own in each direction:

    1 -> 3   sums      post, post           expect, expect
    3 -> 1   sums      expect, expect       post, post
    1 -> 3   values    ...
"""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from samestep.transport.group_links import GroupLinks, Message
from samestep.transport.hosts import FREE, KIND
from samestep.transport.links import Pending


def has_nccl() -> bool:
    return dist.is_nccl_available()


class NcclLinks:
    """links: for the host's memory."""

    def __init__(self, links: GroupLinks, store: Any, size: int) -> None:
        self.rank = links.rank
        self._links, self._store, self._size = links, store, size
        self._groups: dict[tuple[int, bool], Any] = {}

    def post(self, flat: Tensor, peer: int, tag: int) -> Pending:
        if not flat.is_cuda:
            return self._links.post(flat, peer, tag)
        return Message(self._links, self._group(tag, upward=peer > self.rank).send([flat.detach()], peer, 0), peer)

    def expect(self, flat: Tensor, peer: int, tag: int) -> Pending:
        if not flat.is_cuda:
            return self._links.expect(flat, peer, tag)
        return Message(self._links, self._group(tag, upward=peer < self.rank).recv([flat.detach()], peer, 0), peer)

    def give_way(self) -> None:
        self._links.give_way()

    def close(self) -> None:
        self._groups.clear()
        self._links.close()

    def _group(self, tag: int, *, upward: bool) -> Any:
        """The group for a kind of message, towards higher or lower ranks; both ends make it when first needed."""
        kind = (tag if tag < FREE else FREE + (tag - FREE) // KIND), upward
        if kind not in self._groups:
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = timedelta(seconds=self._links.timeout)
            store: Any = dist
            name = f"nccl {kind[0]} {'up' if upward else 'down'}"
            self._groups[kind] = nccl(store.PrefixStore(name, self._store), self.rank, self._size, options)
        return self._groups[kind]
