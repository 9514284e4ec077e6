"""Links over a process group of torch: gloo for CPU tensors, NCCL for CUDA ones.

A message that is posted travels in the group's own threads, while Python computes. torch's errors
name neither worker nor side; here they become a PeerLost that does.
"""

import os
import re
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from samestep.errors import PeerLost
from samestep.trace.whereabouts import Whereabouts
from samestep.transport.links import Pending

THREADS = Path("/proc/self/task")


class GroupLinks:
    """timeout: seconds after which a worker that does not answer counts as lost."""

    def __init__(self, group: dist.ProcessGroup, rank: int, timeout: float) -> None:
        self.rank, self.timeout = rank, timeout
        self.whereabouts = Whereabouts()
        self._group: dist.ProcessGroup | None = group
        self._gives_way = False

    def post(self, flat: Tensor, peer: int, tag: int) -> Pending:
        return self._start("send", flat, peer, tag)

    def expect(self, flat: Tensor, peer: int, tag: int) -> Pending:
        return self._start("recv", flat, peer, tag)

    def give_way(self) -> None:
        """gloo's thread that is woken while Python holds its lock takes the core from it and asks for the lock again
        and again, until the next tick of the scheduler; threads of the batch class wait until the core is free.
        """
        if self._gives_way:
            return
        self._gives_way = True
        for thread in THREADS.iterdir() if THREADS.is_dir() else ():
            if (thread / "comm").read_text().startswith("gloo_tcp"):
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))

    def close(self) -> None:
        """The connections close when nothing is under way any more, or with the process."""
        self._group = None

    def lost(self, peer: int, error: RuntimeError) -> PeerLost:
        if re.search("timed? ?out", str(error), re.IGNORECASE):
            return PeerLost(self.rank, peer, f"it has not answered for {self.timeout:g} s")
        return PeerLost(self.rank, peer)

    def _start(self, verb: str, flat: Tensor, peer: int, tag: int) -> Pending:
        if self._group is None:
            raise PeerLost(self.rank, peer, "the links are closed")
        try:
            work = getattr(self._group, verb)([flat.detach()], peer, tag)
        except RuntimeError as error:
            raise self.lost(peer, error) from None
        return Message(self, work, peer)


@dataclass
class Message:
    links: GroupLinks
    work: dist.Work
    peer: int

    def wait(self) -> None:
        began = time.perf_counter()
        self.links.whereabouts.waits(self.peer, b"message")
        try:
            self.work.wait()
        except RuntimeError as error:
            raise self.links.lost(self.peer, error) from None
        self.links.whereabouts.goes_on(time.perf_counter() - began)


def gloo_links(store: Any, rank: int, size: int, address: str, timeout: float) -> GroupLinks:
    """Join the group that forms in `store`; listens on `address` only. Raises RuntimeError when it does not form."""
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timedelta(seconds=timeout)
    options._devices = [gloo.create_device(hostname=address)]
    return GroupLinks(gloo(store, rank, size, options), rank, timeout)
