"""Links for tensors on a GPU, over links that carry the host's memory.

    post     GPU --copied beside the computation--> pinned memory --when it is there--> link
    expect   link --> pinned memory --when it is waited for--> GPU

A thread waits for the copies and posts them in their order, so that backward goes on meanwhile. For
workers that share a GPU, which NCCL refuses, and where there is no NCCL.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.errors import PeerLost
from samestep.transport.links import Links, Pending


class StagedLinks:
    def __init__(self, links: Links) -> None:
        self.rank = links.rank
        self._links = links
        self._carrier = ThreadPoolExecutor(1, "staging")

    def post(self, flat: Tensor, peer: int, tag: int) -> Pending:
        staged, is_there = to_host(flat)

        def carry() -> Pending:
            is_there()
            return self._links.post(staged, peer, tag)

        try:
            return Carried(self._carrier.submit(carry))
        except RuntimeError:
            raise PeerLost(self.rank, peer, "the links are closed") from None

    def expect(self, flat: Tensor, peer: int, tag: int) -> Pending:
        staged = torch.empty_like(flat, device="cpu", pin_memory=flat.is_cuda)
        return Landing(self._links.expect(staged, peer, tag), staged, flat)

    def give_way(self) -> None:
        self._links.give_way()

    def close(self) -> None:
        """Close after posting all copies that are under way."""
        self._carrier.shutdown()
        self._links.close()


@dataclass
class Carried:
    posted: Future[Pending]

    def wait(self) -> None:
        self.posted.result().wait()


@dataclass
class Landing:
    coming: Pending
    staged: Tensor
    flat: Tensor

    def wait(self) -> None:
        self.coming.wait()
        self.flat.detach().copy_(self.staged, non_blocking=True)


def to_host(flat: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy in the host's memory, and what waits until it is there."""
    if not flat.is_cuda:
        return flat.detach().clone(), lambda: None
    staged = torch.empty_like(flat, device="cpu", pin_memory=True)
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        staged.copy_(flat.detach(), non_blocking=True)
        done = beside.record_event()
    flat.record_stream(beside)
    return staged, done.synchronize
