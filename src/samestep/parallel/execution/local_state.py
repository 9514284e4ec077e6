"""The state of a worker whose logical workers have parameters of their own.

local/0/parameter/fc.weight, local/0/elementwise/..., local/0/buffer/...      all that logical worker 0 has
outer/before/fc.weight, outer/velocity/fc.weight                             the outer optimizer's
sync/missed                                                                  who had no rows since the last meeting
"""

from collections.abc import Iterator

import torch

from samestep.parallel.execution.owned_state import StatePiece, StoredPiece, fill
from samestep.parallel.execution.replica_meeting import Replica, ReplicaMeeting
from samestep.parallel.gradients.compressed_edges import Stored


class LocalState:
    """One worker's part of the state: its replicas, and their common values."""

    def __init__(self, meeting: ReplicaMeeting) -> None:
        self._meeting = meeting
        self._names = [entry.name for entry in meeting.layout.entries]
        self._entries = {entry.name: i for i, entry in meeting.layout.owners()}

    def pieces(self, *, once: bool = False) -> Iterator[StatePiece]:
        meeting, names = self._meeting, self._names
        for replica in meeting.replicas:
            head = f"local/{replica.number}"
            for name, i in self._entries.items():
                yield StatePiece(f"{head}/parameter/{name}", meeting.layout.flat(replica.memory, i), whole=False)
            for piece, kind, key, value in replica.update.state.pieces():
                label = f"{head}/{kind}/{names[piece.entry]}/{key}"
                yield StatePiece(label, value, whole=kind != "elementwise")
            for name, buffer in zip(replica.buffers.names, replica.buffers.values, strict=True):
                yield StatePiece(f"{head}/buffer/{name}", buffer)
        if not once or meeting.transport.hosts[meeting.transport.rank] == 0:
            for piece, outer in meeting.outer.items():
                yield StatePiece(f"outer/before/{names[piece.entry]}", outer.before, piece.start, whole=False)
                yield StatePiece(f"outer/velocity/{names[piece.entry]}", outer.velocity, piece.start, whole=False)
        yield StatePiece("sync/missed", torch.tensor(meeting.missed, dtype=torch.uint8))

    def restore(self, stored: StoredPiece) -> None:
        meeting = self._meeting
        room, _, rest = stored.label.partition("/")
        if room == "sync":
            meeting.missed = [bool(missed) for missed in stored.read()]
        elif room == "outer":
            kind, _, name = rest.partition("/")
            for piece, outer in meeting.outer.items():
                if piece.entry == self._entries[name]:
                    fill(outer.before if kind == "before" else outer.velocity, piece.start, stored)
        elif room == "local":
            number, kind, name = rest.split("/", 2)
            if number == "0":
                self._restore_common(kind, name, stored)
            for replica in meeting.replicas:
                if replica.number == int(number):
                    self._restore_replica(replica, kind, name, stored)

    def finish(self, edges: Stored) -> None:
        """No codec goes with local steps."""

    def _restore_common(self, kind: str, name: str, stored: StoredPiece) -> None:
        meeting = self._meeting
        if kind == "parameter" and meeting.is_common:
            for piece in meeting.host_pieces:
                if piece.entry == self._entries[name]:
                    fill(meeting.flat(meeting.common, piece), piece.start, stored)
        elif kind == "buffer":
            i = meeting.buffers.names.index(name)
            meeting.buffers.set(i, stored.read().to(meeting.buffers.values[i].device))

    def _restore_replica(self, replica: Replica, kind: str, name: str, stored: StoredPiece) -> None:
        if kind == "parameter":
            self._meeting.layout.flat(replica.memory, self._entries[name]).copy_(stored.read())
        elif kind == "buffer":
            i = replica.buffers.names.index(name)
            replica.buffers.values[i] = stored.read().to(replica.buffers.values[i].device)
        else:
            parameter, _, key = name.rpartition("/")
            piece = next(p for p, _ in replica.update.targets if p.entry == self._entries[parameter])
            replica.update.state.restore(piece, kind, key, stored.read())
