"""Shards that go through forward and backward together and stop where they must meet.

Each shard of the worker runs in a thread of its own, one at a time, in shard order; at a meeting all
shards of the step, on all workers, see what every shard brought:

    shard 0   ---a0 |wait              | a0..a3 ---b0 |
    shard 1         ---a1 |exchange    |              ---b1 | ...
    (worker 1: shards 2, 3 likewise)

Works on unmodified modules because on the CPU backward runs in the thread that called it.
"""

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context

import numpy as np
import torch
from torch import Tensor

from samestep.errors import Disagreement
from samestep.parallel.execution.buffers import Buffers
from samestep.system.device import same_device
from samestep.transport.baton import Baton
from samestep.transport.transport import Transport

END = "the end of backward"  # the last meeting of every shard


class _Abandoned(BaseException):
    """Unwinds the other shards once one has failed."""


class LockstepRunner:
    """One step's shards on one worker. `ranks` are the workers that have shards in this step."""

    def __init__(self, transport: Transport, ranks: Sequence[int], buffers: Buffers, threads: int) -> None:
        self._transport, self._ranks, self._buffers, self._threads = transport, ranks, buffers, threads
        self._baton, self._use_device = Baton(), same_device()
        self._turn = 0
        self._brought: list[Tensor] = []
        self._places: list[str] = []  # where the shards stopped that have brought something
        self._found: list[Tensor] = []
        self._meetings = 0
        self._failure: BaseException | None = None
        self._num_shards = 0

    def run(self, shards: Sequence[Callable[[], None]]) -> None:
        """Run all of `shards` to their end. Raises what the first failing one raised."""
        self._num_shards = len(shards)
        context = copy_context()
        threads = [
            threading.Thread(target=context.copy().run, args=(self._run_shard, index, shard))
            for index, shard in enumerate(shards)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def meet(self, what: str, mine: Tensor) -> list[Tensor]:
        """Every shard's `mine`, in shard order over all workers. `what` must be the same for all."""
        index, meeting = self._turn, self._meetings
        self._brought.append(mine)
        self._places.append(what)
        self._turn = index + 1
        if len(self._brought) == self._num_shards:
            self._found = self._exchange(what)
            self._brought, self._places, self._turn = [], [], 0
            self._meetings += 1
        bound = self._buffers.bound()
        self._wait(lambda: self._turn == index and self._meetings > meeting)
        self._buffers.rebind(bound)
        return self._found

    def _run_shard(self, index: int, shard: Callable[[], None]) -> None:
        torch.set_num_threads(self._threads)
        self._use_device()
        _current.set(self)
        self._baton.take(lambda: self._turn == index or self._failure is not None)
        try:
            if self._failure is None:
                shard()
                self.meet(END, torch.zeros(1))
        except _Abandoned:
            pass
        except BaseException as failure:  # noqa: BLE001 - handed to the worker's own thread
            self._failure = self._failure or failure
        finally:
            self._turn = index + 1
            self._baton.give()

    def _wait(self, ready: Callable[[], bool]) -> None:
        self._baton.wait_for(lambda: ready() or self._failure is not None)
        if self._failure is not None:
            raise _Abandoned

    def _exchange(self, what: str) -> list[Tensor]:
        rank = self._transport.rank
        if other_places := [place for place in self._places if place != what]:
            raise _different_places(f"one shard of worker {rank} stopped at {other_places[0]}, another at {what}")
        label = what.encode()
        packed = torch.stack(self._brought).detach().contiguous()
        raw = packed.cpu().numpy()
        record = len(label).to_bytes(2, "little") + label + raw.tobytes()
        found: list[Tensor] = []
        for peer, other in zip(self._ranks, self._transport.exchange(record, self._ranks), strict=True):
            end = 2 + int.from_bytes(other[:2], "little")
            if other[2:end] != label:
                raise _different_places(f"worker {rank} stopped at {what}, worker {peer} at {other[2:end].decode()}")
            values = torch.from_numpy(np.frombuffer(other[end:], dtype=raw.dtype).copy())
            found += values.to(packed.device).view(-1, *packed.shape[1:])
        return found


def _different_places(what: str) -> Disagreement:
    return Disagreement(
        f"{what}: with sync_batchnorm=True every shard must go through the same layers in the same order"
    )


_current: ContextVar[LockstepRunner] = ContextVar("lockstep")


def meet(what: str, mine: Tensor) -> list[Tensor]:
    """Meet the other shards of the step from inside forward or backward."""
    return _current.get().meet(what, mine)
