"""Workers on several hosts: the records of a host's workers go to each other host once.

    host 0: workers 0, 1          host 1: workers 2, 3, 4
    within a host     the host's own transport (shared memory)
    between hosts     links, worker to worker (torch's process group)

    exchange   0, 1 meet | 0 and 2, the first of their hosts, swap records | 2 passes them to 3, 4
    send       by link; a copy leaves at once, so the sender goes on
    move       within the host as ever, to other hosts by links

What is short travels in one message, a frame: the receiver expects the longest one there may be, and
a frame is as long as what is in it. Each message costs as much as 100 KB, however short it is, and with
as many busy workers as cores up to a tick of the scheduler: gloo's thread asks again and again for a
lock whose holder waits for the core that the thread is on.

    frame      epoch, length | headers of the tensors | their bytes, those that fit
    then       the rest of the record; the tensors that did not fit

The membership epoch: what a former incarnation of the run left on its way cannot be taken for this one's.
"""

import json
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from samestep.errors import Disagreement, PeerLost
from samestep.trace.whereabouts import check_same_place
from samestep.transport.links import Links, Pending
from samestep.transport.strides import empty_from, header, payload
from samestep.transport.transport import Transport

RECORDS, SENT, MOVED, FREE = 0, 1, 2, 3  # tags; those from FREE on are for whoever uses the links
KIND = 1 << 20  # tags that each kind of message has for itself there
FRAME = 256 << 10  # bytes of the longest one
HEAD = struct.Struct("<QQ")  # epoch, bytes of the record


class HostsTransport:
    """local: the transport of this host's workers, who are numbered in the order of their ranks there."""

    def __init__(self, rank: int, hosts: Sequence[int], local: Transport, links: Links, epoch: int = 0) -> None:
        self.rank, self.hosts, self.size = rank, tuple(hosts), len(hosts)
        self.timesheet, self.counted = local.timesheet, local.counted
        self.links: Links | None = links
        self._links = links
        self._local, self._epoch = local, epoch
        self._near = [peer for peer in range(self.size) if hosts[peer] == hosts[rank]]
        self._copies: list[Pending] = []  # what is under way, since the last exchange of all
        self._older: list[Pending] = []  # and before it

    def exchange(self, record: bytes, ranks: Sequence[int] | None = None) -> list[bytes]:
        group = range(self.size) if ranks is None else ranks
        if ranks is None:
            # Whoever came to the last exchange has taken what was sent before the one before it.
            self._wait(self._older)
            self._older, self._copies = self._copies, []
        near = [peer for peer in group if self.hosts[peer] == self.hosts[self.rank]]
        own = self._exchange_near(record, near)
        if len(near) == len(group):
            return own
        found = dict(zip(near, own, strict=True))
        if self.rank == near[0]:
            found |= self._swap_records(joined([self.timesheet.whereabouts.tag, *own]), group)
        if len(near) > 1:
            told = joined([found[peer] for peer in group]) if self.rank == near[0] else b""
            found = dict(zip(group, parted(self._exchange_near(told, near)[0]), strict=True))
        return [found[peer] for peer in group]

    def fence(self) -> None:
        with self._named():
            self._local.fence()

    def send(self, tensor: Tensor, peer: int) -> None:
        if peer in self._near:
            with self._named():
                self._local.send(tensor, self._near.index(peer))
        else:
            self._give(tensor.detach(), peer, SENT)

    def receive(self, peer: int) -> Tensor:
        if peer in self._near:
            with self._named():
                return self._local.receive(self._near.index(peer))
        return self._take(peer, SENT)

    def move(
        self, group: Sequence[int], outgoing: Sequence[tuple[int, Tensor]], sources: Sequence[int]
    ) -> list[Tensor]:
        """Frames first, then each expects before it posts: gloo then sends both ways at once."""
        self._links.give_way()
        near = [peer for peer in group if peer in self._near]
        gives: dict[int, list[Tensor]] = {}
        for peer, tensor in outgoing:
            if peer not in near:
                gives.setdefault(peer, []).append(tensor)
        far = [peer for peer in sources if peer not in near]
        large = {peer: self._give_frame(tensors, peer, MOVED) for peer, tensors in gives.items()}
        writers = list(dict.fromkeys(far))
        coming = dict(zip(writers, self._take_frames(writers, MOVED), strict=True))
        under_way = [
            self._links.expect(flat, writer, MOVED) for writer in writers for _, flat, is_here in coming[writer]
            if not is_here
        ]  # fmt: skip
        for peer, flats in large.items():
            for flat in flats:
                self._post(flat.clone(), peer, MOVED)
        found: list[Tensor] = []
        if len(near) > 1:
            place = self._near.index
            with self._named():
                found = self._local.move(
                    [place(peer) for peer in near],
                    [(place(peer), tensor) for peer, tensor in outgoing if peer in near],
                    [place(peer) for peer in sources if peer in near],
                )
        self._wait(under_way)
        for _, flat, _ in (one for writer in writers for one in coming[writer]):
            self.counted.moved += len(flat)
            self.counted.wired += len(flat)
        from_near, from_far = iter(found), {writer: iter(pairs) for writer, pairs in coming.items()}
        return [next(from_near) if peer in near else next(from_far[peer])[0] for peer in sources]

    def close(self) -> None:
        self._links.close()
        self._local.close()

    def _exchange_near(self, record: bytes, near: Sequence[int]) -> list[bytes]:
        with self._named():
            return self._local.exchange(record, [self._near.index(peer) for peer in near])

    def _swap_records(self, record: bytes, group: Sequence[int]) -> dict[int, bytes]:
        """Every other host's records, from the first of its workers in `group`; by worker."""
        others = {host: [peer for peer in group if self.hosts[peer] == host] for host in self._hosts_of(group)}
        del others[self.hosts[self.rank]]
        posted = len(self._copies)
        for near in others.values():
            self._give_bytes(record, near[0], RECORDS)
        found: dict[int, bytes] = {}
        for near, (told, _) in zip(
            others.values(), self._take_bytes([w[0] for w in others.values()], RECORDS), strict=True
        ):
            tag, *records = parted(told)
            check_same_place(self.rank, self.timesheet.whereabouts.tag, near[0], tag)
            found |= zip(near, records, strict=True)
        self._wait(self._copies[posted:])  # a worker that ends after its last exchange must have informed the others
        del self._copies[posted:]
        return found

    def _hosts_of(self, group: Sequence[int]) -> list[int]:
        return list(dict.fromkeys(self.hosts[peer] for peer in group))

    def _give(self, tensor: Tensor, peer: int, tag: int) -> None:
        """Without waiting for the receiver."""
        for flat in self._give_frame([tensor], peer, tag):
            self._post(flat.clone(), peer, tag)

    def _take(self, peer: int, tag: int) -> Tensor:
        """The next tensor that `peer` gave."""
        [[(tensor, flat, is_here)]] = self._take_frames([peer], tag)
        if not is_here:
            self._wait([self._links.expect(flat, peer, tag)])
        self.counted.moved += tensor.numel() * tensor.element_size()
        self.counted.wired += len(flat)
        return tensor

    def _give_frame(self, tensors: Sequence[Tensor], peer: int, tag: int) -> list[Tensor]:
        """Headers, and the bytes of what fits. Returns the bytes of the others, which are still to be posted."""
        record = joined([header(tensor) for tensor in tensors])
        flats = [payload(tensor) for tensor in tensors]
        inside = _inside(HEAD.size + len(record), flats)
        self._give_bytes(record, peer, tag, [flat for flat, fits in zip(flats, inside, strict=True) if fits])
        return [flat for flat, fits in zip(flats, inside, strict=True) if not fits]

    def _take_frames(self, peers: Sequence[int], tag: int) -> list[list[tuple[Tensor, Tensor, bool]]]:
        """Receive frames: each tensor, its bytes, and whether they are here; the others are to be expected."""
        found = []
        for record, frame in self._take_bytes(peers, tag):
            made = [empty_from(text) for text in parted(record)]
            at = HEAD.size + len(record)
            inside = _inside(at, [flat for _, flat in made])
            for (_, flat), fits in zip(made, inside, strict=True):
                if fits:
                    flat.copy_(frame[at : at + len(flat)])
                    at += len(flat)
            found.append([(tensor, flat, fits) for (tensor, flat), fits in zip(made, inside, strict=True)])
        return found

    def _give_bytes(self, record: bytes, peer: int, tag: int, flats: Sequence[Tensor] = ()) -> None:
        text = torch.frombuffer(bytearray(HEAD.pack(self._epoch, len(record)) + record), dtype=torch.uint8)
        self._post(torch.cat([text[:FRAME], *flats]), peer, tag)
        if len(text) > FRAME:
            self._post(text[FRAME:], peer, tag)

    def _take_bytes(self, peers: Sequence[int], tag: int) -> list[tuple[bytes, Tensor]]:
        """Every peer's record, and the frame that it began in."""
        frames = [torch.empty(FRAME, dtype=torch.uint8) for _ in peers]
        self._wait([self._links.expect(frame, peer, tag) for frame, peer in zip(frames, peers, strict=True)])
        found = []
        for frame, peer in zip(frames, peers, strict=True):
            epoch, length = HEAD.unpack_from(frame[: HEAD.size].numpy().tobytes())
            if epoch != self._epoch:
                raise Disagreement(
                    f"worker {peer} speaks in epoch {epoch} of the run, worker {self.rank} is in {self._epoch}: "
                    "a worker of an earlier start still runs; stop it"
                )
            text = frame[HEAD.size : HEAD.size + length].numpy().tobytes()
            if (rest := length - len(text)) > 0:
                more = torch.empty(rest, dtype=torch.uint8)
                self._wait([self._links.expect(more, peer, tag)])
                text += more.numpy().tobytes()
            self.counted.wired += HEAD.size + length
            self.counted.framed += HEAD.size + length
            found.append((text, frame))
        return found

    def _post(self, flat: Tensor, peer: int, tag: int) -> None:
        self._copies.append(self._links.post(flat, peer, tag))

    def _wait(self, coming: Sequence[Pending]) -> None:
        began = time.perf_counter()
        for pending in coming:
            pending.wait()
        self.timesheet.waited(time.perf_counter() - began)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """The local transport numbers the workers of its host only."""
        try:
            yield
        except PeerLost as lost:
            raise PeerLost(self.rank, self._near[lost.peer], lost.why) from None


def _inside(at: int, flats: Sequence[Tensor]) -> list[bool]:
    """Which of some tensors' bytes travel in a frame of which `at` bytes are taken: each that still fits."""
    found = []
    for flat in flats:
        found.append(not flat.is_cuda and at + len(flat) <= FRAME)
        at += len(flat) * found[-1]
    return found


def joined(records: Sequence[bytes]) -> bytes:
    return json.dumps([len(record) for record in records]).encode() + b"\n" + b"".join(records)


def parted(text: bytes) -> list[bytes]:
    lengths, _, rest = text.partition(b"\n")
    found, at = [], 0
    for length in json.loads(lengths):
        found.append(rest[at : at + length])
        at += length
    return found
