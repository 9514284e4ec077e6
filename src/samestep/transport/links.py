"""Links: raw bytes between workers of different hosts, without waiting.

Both sides name a message by a tag; messages of one tag arrive in the order in which they were posted. What
comes may be shorter than what is expected, in the CPU's memory, and then fills its beginning. Whoever posts
early can compute while the bytes travel.
"""

from typing import Protocol

from torch import Tensor


class Pending(Protocol):
    """A message under way."""

    def wait(self) -> None:
        """Until the buffer may be used again. Raises PeerLost."""
        ...


class Links(Protocol):
    """One worker's links to all others."""

    rank: int

    def post(self, flat: Tensor, peer: int, tag: int) -> Pending:
        """Send a contiguous tensor's bytes; leave it unchanged until they are gone."""
        ...

    def expect(self, flat: Tensor, peer: int, tag: int) -> Pending:
        """Fill a contiguous tensor, or its beginning, with what `peer` posts under `tag`."""
        ...

    def give_way(self) -> None:
        """From now on, the thread that moves bytes interrupts nobody who computes.

        For those who wait for each message, and for messages that nobody waits for."""
        ...

    def close(self) -> None: ...
