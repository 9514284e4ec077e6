"""How long a transport's verbs take, measured with the verbs themselves.

    exchange, fence    all workers meet
    send               there and back between two of them; half of it is one way
    move               the two give each other a tensor

How often something is repeated depends on how long it takes; the first of the two decides and tells.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import torch

from samestep.plan.link_times import Curve, LinkTimes
from samestep.system.json_values import value_from
from samestep.transport.transport import Transport

SIZES = (64, 4 * 1024, 64 * 1024, 512 * 1024, 4 * 1024**2, 16 * 1024**2)  # bytes
RECORD = bytes(64)
MOST_ROUNDS = 200


def measure_links(
    transport: Transport, pair: tuple[int, int] = (0, 1), sizes: Sequence[int] = SIZES, patience: float = 0.08
) -> LinkTimes:
    """The times between two workers, alike in all of them. All workers of the transport must call it.

    Call it in workers that have nothing else to do. sizes: bytes, ascending; those from which on one round takes
    longer than ten times `patience` are left out. patience: seconds for the rounds of one verb and size. To `move`
    as sliced layers do, the fabric needs an outbox of the largest size for the group `pair`; else it goes by mail.
    """
    stand = _Stand(transport, pair, patience)
    exchange, _ = stand.median(lambda: transport.exchange(RECORD))
    fence, _ = stand.median(transport.fence)
    found = LinkTimes(exchange, fence, stand.curve(stand.there_and_back, sizes, 2), stand.curve(stand.move, sizes, 1))
    told = transport.exchange(json.dumps(asdict(found)).encode())[pair[0]]
    times: LinkTimes = value_from(LinkTimes, json.loads(told))
    return times


class _Stand:
    """One worker at the test stand."""

    def __init__(self, transport: Transport, pair: tuple[int, int], patience: float) -> None:
        self.transport, self.pair, self.patience = transport, pair, patience
        self.peer = pair[1] if transport.rank == pair[0] else pair[0]

    def curve(self, verb: Callable[[torch.Tensor], object], sizes: Sequence[int], trips: int) -> Curve:
        """trips: how many one after the other make one call of `verb`."""
        points, cpu = list[tuple[int, float]](), 0.0
        for nbytes in sizes:
            tensor = torch.zeros(nbytes, dtype=torch.uint8)
            seconds, busy = self.median(partial(verb, tensor))
            points.append((nbytes, seconds / trips))
            cpu = busy / trips / nbytes
            if seconds > 10 * self.patience:
                break
        return Curve(tuple(points), cpu)

    def there_and_back(self, tensor: torch.Tensor) -> None:
        if self.transport.rank == self.pair[0]:
            self.transport.send(tensor, self.peer)
            self.transport.receive(self.peer)
        elif self.transport.rank == self.pair[1]:
            self.transport.send(self.transport.receive(self.peer), self.peer)

    def move(self, tensor: torch.Tensor) -> None:
        if self.transport.rank in self.pair:
            self.transport.move(self.pair, [(self.peer, tensor)], [self.peer])

    def median(self, verb: Callable[[], object]) -> tuple[float, float]:
        """Wall time of one call as the first of the pair sees it, and the CPU time that the pair needs for it."""
        verb()  # touches what memory it needs
        once = self._timed(verb)
        rounds = int(min(MOST_ROUNDS, max(3, self.patience / self._told(once)[self.pair[0]])))
        busy = time.process_time()
        times = [self._timed(verb) for _ in range(rounds)]
        busy = (time.process_time() - busy) / rounds
        seconds = self._told(statistics.median(times))[self.pair[0]]
        cpu = self._told(busy)
        return seconds, sum(cpu[rank] for rank in self.pair)

    def _timed(self, verb: Callable[[], object]) -> float:
        began = time.perf_counter()
        verb()
        return time.perf_counter() - began

    def _told(self, value: float) -> list[float]:
        """Every worker's value; all have come here when it returns."""
        return [float(record) for record in self.transport.exchange(repr(value).encode())]


def outboxes(pair: tuple[int, int] = (0, 1), sizes: Sequence[int] = SIZES) -> dict[tuple[int, ...], int]:
    """Bytes that a fabric's `groups` must hold for `measure_links`."""
    return {pair: max(sizes)}
