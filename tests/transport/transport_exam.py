"""The exam that every transport sits: what each worker does and checks, whatever carries the bytes.

A question is a function of one worker's transport and of 64 kB of fabric memory that all workers of
its host see. Every worker of the run answers it; it passes when none raises. Free of pytest, because
`exam_hall.py` runs it in forked processes.
"""

import itertools
import os
import random
import signal
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from samestep.errors import PeerLost
from samestep.numerics import random_streams
from samestep.transport.hosts import FREE
from samestep.transport.links import Links
from samestep.transport.strides import span
from samestep.transport.transport import Transport

MEMORY = 1 << 16  # bytes of fabric memory in every question
OUTBOX = 9_000  # bytes that a worker gives away in one move; some moves have more

Question = Callable[[Transport, Tensor], None]
EXAM: dict[str, Question] = {}
EXAM_OF_LINKS: dict[str, Question] = {}  # for transports whose workers are on several hosts


def question(function: Question) -> Question:
    EXAM[function.__name__] = function
    return function


def question_of_links(function: Callable[[Transport, Links], None]) -> Callable[[Transport, Links], None]:
    def asked(transport: Transport, memory: Tensor) -> None:
        assert transport.links is not None
        function(transport, transport.links)

    EXAM_OF_LINKS[function.__name__] = asked
    return function


def near(transport: Transport) -> list[int]:
    """The workers of the same host: with them memory is shared."""
    return [rank for rank, host in enumerate(transport.hosts) if host == transport.hosts[transport.rank]]


def others(transport: Transport) -> list[int]:
    return [rank for rank in range(transport.size) if rank != transport.rank]


# ---------------------------------------------------------------------------------------- exchange


@question
def exchange_returns_every_record_in_rank_order(transport: Transport, memory: Tensor) -> None:
    for turn in range(20):
        found = transport.exchange(f"{transport.rank} in turn {turn}".encode())
        assert found == [f"{rank} in turn {turn}".encode() for rank in range(transport.size)], found


@question
def exchange_carries_empty_records(transport: Transport, memory: Tensor) -> None:
    assert transport.exchange(b"") == [b""] * transport.size
    found = transport.exchange(b"x" * transport.rank)
    assert found == [b"x" * rank for rank in range(transport.size)], found


def record_of(rank: int, length: int) -> bytes:
    return random.Random(f"{rank} {length}").randbytes(length)


@question
def exchange_carries_long_records_of_different_lengths(transport: Transport, memory: Tensor) -> None:
    packet = 32 * 1024
    lengths = [700_001, 0, 3, 10 * packet, packet, packet - 1, packet + 1, 250_000]
    for turn in range(len(lengths)):
        of_rank = [lengths[(turn + rank) % len(lengths)] for rank in range(transport.size)]
        found = transport.exchange(record_of(transport.rank, of_rank[transport.rank]))
        assert found == [record_of(rank, length) for rank, length in enumerate(of_rank)], turn


@question
def exchange_is_a_barrier(transport: Transport, memory: Tensor) -> None:
    """Nobody leaves the n-th exchange before everybody has come to it."""
    counters = memory.view(torch.int64)
    for turn in range(1, 200):
        counters[transport.rank] = turn
        transport.exchange(b"")
        seen = counters[near(transport)].tolist()
        assert all(turn <= count <= turn + 1 for count in seen), (turn, seen)


@question
def exchange_among_some_leaves_the_others_alone(transport: Transport, memory: Tensor) -> None:
    """Worker 0 goes on to the joint exchange while the others meet among themselves."""
    some = range(1, transport.size)
    for turn in range(20):
        if transport.rank in some:
            found = transport.exchange(f"{transport.rank} {turn}".encode(), some)
            assert found == [f"{rank} {turn}".encode() for rank in some], found
        joint = transport.exchange(f"all {transport.rank} {turn}".encode())
        assert joint == [f"all {rank} {turn}".encode() for rank in range(transport.size)], joint
        assert transport.exchange(b"alone", [transport.rank]) == [b"alone"]


# ------------------------------------------------------------------------------------------- fence


@question
def fence_makes_writes_to_fabric_memory_visible(transport: Transport, memory: Tensor) -> None:
    share = MEMORY // transport.size // 64 * 64
    for turn in range(1, 60):
        memory[transport.rank * share : (transport.rank + 1) * share] = (transport.rank + turn) % 251
        transport.fence()
        for rank in near(transport):
            part = memory[rank * share : (rank + 1) * share]
            assert bool((part == (rank + turn) % 251).all()), (turn, rank)
        transport.fence()  # nobody writes before everybody has read


@question
def fabric_memory_begins_as_zeros(transport: Transport, memory: Tensor) -> None:
    assert memory.dtype == torch.uint8
    assert memory.shape == (MEMORY,)
    assert not bool(memory.any())
    transport.fence()


# -------------------------------------------------------------------------------- send and receive


def numbers(shape: tuple[int, ...], dtype: torch.dtype, key: int = 0) -> Tensor:
    """Random bits of any dtype: NaN payloads, infinities and denormals among them."""
    found = torch.empty(shape, dtype=dtype)
    flat = found.view(-1).view(torch.uint8)
    flat.copy_(torch.from_numpy(np.random.default_rng(key).integers(0, 256, len(flat), dtype=np.uint8)))
    return found if dtype != torch.bool else flat.view(shape) < 128


def tensors() -> dict[str, Tensor]:
    """One tensor of every kind that must arrive as it left."""
    f32 = torch.float32
    made = {
        str(dtype): numbers((3, 5), dtype)
        for dtype in (
            torch.float32,
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.complex64,
            torch.complex128,
            torch.bool,
            torch.uint8,
            torch.int8,
            torch.int16,
            torch.int32,
            torch.int64,
        )
    }
    return made | {
        "0-dim": numbers((), f32),
        "0-dim bool": torch.tensor(True),
        "one element": numbers((1, 1), f32),
        "empty": numbers((0,), f32),
        "empty with shape": numbers((3, 0, 2), torch.int64),
        "empty, transposed": numbers((4, 0), f32).t(),
        "transposed": numbers((7, 3), f32).t(),
        "permuted": numbers((2, 3, 4), torch.bfloat16).permute(2, 0, 1),
        "channels last": numbers((2, 3, 4, 5), f32).to(memory_format=torch.channels_last),
        "channels last 3d": numbers((2, 3, 2, 2, 2), f32).to(memory_format=torch.channels_last_3d),
        "expanded rows": numbers((1, 4), f32).expand(3, 4),
        "expanded columns": numbers((3, 1), f32).expand(3, 4),
        "expanded scalar": numbers((), f32).expand(2, 3, 4),
        "column slice": numbers((3, 8), f32)[:, ::2],
        "inner columns": numbers((6, 10), f32)[1:5, 3:7],
        "row step": numbers((9, 4), torch.int64)[::3],
        "overlapping windows": numbers((10,), f32).unfold(0, 4, 2),
        "one row of many": numbers((5, 6), f32)[2],
        "gradient wanted": torch.arange(6.0).view(2, 3).requires_grad_(),
        "parameter": torch.nn.Parameter(numbers((2, 2), f32)),
        "just under a mailbox": numbers(((1 << 18) - 1,), f32),
        "just a mailbox": numbers((1 << 18,), f32),
        "larger than a mailbox": numbers((3, 500_001), f32),
        "large, transposed": numbers((1_000, 700), f32).t(),
        "large column slice": numbers((700, 1_000), torch.int16)[:, ::3],
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def check_arrived(name: str, found: Tensor, sent: Tensor) -> None:
    assert found.dtype == sent.dtype, (name, found.dtype, sent.dtype)
    assert found.shape == sent.shape, (name, found.shape, sent.shape)
    assert found.stride() == sent.stride(), (name, found.stride(), sent.stride())
    assert bits(found) == bits(sent), f"{name}: other bits"
    assert found.untyped_storage().nbytes() == span(sent) * sent.element_size(), f"{name}: more than its span travelled"
    assert not found.requires_grad, name


@question
def a_tensor_arrives_with_its_bits_dtype_and_strides(transport: Transport, memory: Tensor) -> None:
    for sender, receiver in itertools.permutations(range(transport.size), 2):
        for name, sent in tensors().items():
            if transport.rank == sender:
                transport.send(sent, receiver)
            elif transport.rank == receiver:
                check_arrived(name, transport.receive(sender), sent)


@question
def what_is_sent_is_a_copy(transport: Transport, memory: Tensor) -> None:
    """The sender may write over a tensor as soon as `send` returns."""
    last = transport.size - 1
    if transport.rank == 0 and last:
        for value in range(30):
            buffer = torch.full((500,), float(value))
            transport.send(buffer, last)
            buffer.fill_(-1.0)
    elif transport.rank == last and last:
        for value in range(30):
            found = transport.receive(0)
            assert bool((found == value).all()), (value, found[:3])


@question
def tensors_arrive_in_the_order_they_were_sent(transport: Transport, memory: Tensor) -> None:
    """From everybody to everybody's neighbour, of sizes that use one half of a mailbox, both, and more."""
    sizes = [1, 0, 200_000, 5, 400_000, 131_072, 131_073, 2, 0, 0, 900_000, 7]
    for sender in range(transport.size):
        receiver = (sender + 1) % transport.size
        for i, size in enumerate(sizes if sender != receiver else ()):
            if transport.rank == sender:
                transport.send(numbers((size,), torch.float32, key=i), receiver)
            elif transport.rank == receiver:
                check_arrived(f"tensor {i}", transport.receive(sender), numbers((size,), torch.float32, key=i))


@question
def both_directions_at_once_do_not_block(transport: Transport, memory: Tensor) -> None:
    """Everybody sends just under 1 MiB to everybody before anybody receives."""
    peers = others(transport)
    for turn in range(5):
        for peer in peers:
            transport.send(numbers((262_143,), torch.float32, key=turn * 10 + transport.rank), peer)
        for peer in peers:
            sent = numbers((262_143,), torch.float32, key=turn * 10 + peer)
            check_arrived(f"turn {turn} from {peer}", transport.receive(peer), sent)


@question
def an_exchange_between_send_and_receive_mixes_nothing_up(transport: Transport, memory: Tensor) -> None:
    after = (transport.rank + 1) % transport.size
    before = (transport.rank - 1) % transport.size
    long = b"r" * 100_000
    for turn in range(10):
        if transport.size > 1:
            transport.send(numbers((60_000,), torch.float32, key=turn), after)
        assert transport.exchange(long + bytes([transport.rank])) == [long + bytes([r]) for r in range(transport.size)]
        transport.fence()
        if transport.size > 1:
            check_arrived(f"turn {turn}", transport.receive(before), numbers((60_000,), torch.float32, key=turn))


# -------------------------------------------------------------------------------------------- move


@question
def large_tensors_sent_both_ways_before_any_is_received_arrive(transport: Transport, memory: Tensor) -> None:
    """1F1B: one worker sends activations while the other sends gradients."""
    peers = others(transport)
    for turn in range(3):
        sent = {peer: [numbers((700, 1000 + k), torch.float32, turn * 10 + k) for k in range(4)] for peer in peers}
        for k in range(4):
            for peer in peers:
                transport.send(sent[peer][k], peer)
        for peer in peers:
            for k in range(4):
                check_arrived("sent", transport.receive(peer), numbers((700, 1000 + k), torch.float32, turn * 10 + k))


def moved(sender: int, reader: int, turn: int, k: int) -> Tensor:
    rows = [0, 3, 500][(sender + reader + turn) % 3]
    return numbers((rows, 4 + k), torch.float32, sender * 1000 + reader * 100 + turn * 10 + k).t()


@question
def move_brings_everybodys_tensors_in_order_and_with_strides(transport: Transport, memory: Tensor) -> None:
    """Different numbers of tensors for different peers, more bytes than an outbox holds among them."""
    group, me = range(transport.size), transport.rank
    peers = others(transport)
    for turn in range(12):
        outgoing = [(peer, moved(me, peer, turn, k)) for k in range(3) for peer in peers if k <= (me + turn) % 3]
        sources = [peer for peer in peers for k in range(3) if k <= (peer + turn) % 3]
        before = transport.counted.moved
        found = transport.move(group, outgoing, sources)
        expected = [moved(peer, me, turn, k) for peer in peers for k in range(3) if k <= (peer + turn) % 3]
        for one, other in zip(found, expected, strict=True):
            assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
            assert bits(one) == bits(other)
        assert transport.counted.moved - before == sum(t.numel() * t.element_size() for t in expected)


@question
def a_tensor_moved_to_several_is_the_same_for_all(transport: Transport, memory: Tensor) -> None:
    group, me = range(transport.size), transport.rank
    for turn in range(50):
        mine = torch.full((100,), float(1000 * me + turn))
        found = transport.move(group, [(peer, mine) for peer in group if peer != me], [p for p in group if p != me])
        mine.fill_(-1)  # whoever gave it may use it again
        assert [float(t.sum()) for t in found] == [100.0 * (1000 * p + turn) for p in group if p != me]


@question
def what_is_sent_does_not_come_between_what_is_moved(transport: Transport, memory: Tensor) -> None:
    me, peers = transport.rank, others(transport)
    for peer in peers:
        transport.send(torch.tensor([1.0, me]), peer)
    found = transport.move(range(transport.size), [(peer, torch.tensor([2, me])) for peer in peers], peers)
    assert [t.tolist() for t in found] == [[2, peer] for peer in peers]
    assert [transport.receive(peer).tolist() for peer in peers] == [[1.0, peer] for peer in peers]


@question
def groups_that_overlap_move_independently(transport: Transport, memory: Tensor) -> None:
    """All workers and a group of two take turns; a worker outside the group goes on."""
    size, me = transport.size, transport.rank
    if size < 3:
        return
    for turn in range(20):
        if me in (0, 2):
            (found,) = transport.move((0, 2), [(2 - me, torch.full((9,), float(me + turn)))], [2 - me])
            assert float(found[0]) == 2 - me + turn
        peers = [peer for peer in range(size) if peer != me]
        found_all = transport.move(range(size), [(peer, torch.tensor([me, turn])) for peer in peers], peers)
        assert [t.tolist() for t in found_all] == [[peer, turn] for peer in peers]


# ------------------------------------------------------------------------------------------- links


def letter(sender: int, receiver: int, tag: int, number: int, nbytes: int) -> Tensor:
    return numbers((nbytes,), torch.uint8, ((sender * 10 + receiver) * 100 + tag) * 100 + number)


def check_letter(found: Tensor, *key: int) -> None:
    assert torch.equal(found, letter(*key, len(found))), f"sender, receiver, tag, number {key}"


@question_of_links
def messages_of_a_tag_arrive_in_the_order_in_which_they_were_posted(transport: Transport, links: Links) -> None:
    """Whatever their sizes, and whether or not what is posted comes before what is expected."""
    sizes, me = [1, 300_000, 7, 1_000, 2_000_000, 64, 64], transport.rank
    for expects_first in (True, False):
        letters = {peer: [letter(me, peer, 0, k, size) for k, size in enumerate(sizes)] for peer in others(transport)}
        boxes = {peer: [torch.empty(size, dtype=torch.uint8) for size in sizes] for peer in others(transport)}
        coming, going = [], []
        for posts in (False, True) if expects_first else (True, False):
            for peer in others(transport):
                if posts:
                    going += [links.post(flat, peer, FREE) for flat in letters[peer]]
                else:
                    coming += [links.expect(flat, peer, FREE) for flat in boxes[peer]]
            transport.exchange(b"everybody has done the one before anybody does the other")
        for pending in (*coming, *going):
            pending.wait()
        for peer in others(transport):
            for k, box in enumerate(boxes[peer]):
                check_letter(box, peer, me, 0, k)


@question_of_links
def a_message_may_be_shorter_than_what_is_expected(transport: Transport, links: Links) -> None:
    """The next one is a message of its own. What is behind it in the box is nobody's."""
    sizes, me = [70_000, 1, 5_000], transport.rank
    for expects_first in (True, False):
        boxes = {peer: [torch.empty(300_000, dtype=torch.uint8) for _ in sizes] for peer in others(transport)}
        coming, going = [], []
        for posts in (False, True) if expects_first else (True, False):
            for peer in others(transport):
                for k, size in enumerate(sizes):
                    if posts:
                        going.append(links.post(letter(me, peer, 1, k, size), peer, FREE))
                    else:
                        coming.append(links.expect(boxes[peer][k], peer, FREE))
            transport.exchange(b"everybody has done the one before anybody does the other")
        for pending in (*coming, *going):
            pending.wait()
        for peer in others(transport):
            for k, (box, size) in enumerate(zip(boxes[peer], sizes, strict=True)):
                check_letter(box[:size], peer, me, 1, k)


@question_of_links
def tags_are_queues_of_their_own(transport: Transport, links: Links) -> None:
    """Posted in one order, expected and waited for in another."""
    tags, me = [FREE, FREE + 1, FREE + (1 << 20), FREE + 77], transport.rank
    for turn in range(5):
        going = [
            links.post(letter(me, peer, i, turn, 500 * i + 1), peer, tag)
            for i, tag in enumerate(tags)
            for peer in others(transport)
        ]
        for i, tag in reversed(list(enumerate(tags))):
            for peer in others(transport):
                box = torch.empty(500 * i + 1, dtype=torch.uint8)
                links.expect(box, peer, tag).wait()
                check_letter(box, peer, me, i, turn)
        for pending in going:
            pending.wait()


@question_of_links
def big_messages_both_ways_at_once_do_not_block(transport: Transport, links: Links) -> None:
    size, me = 5_000_000, transport.rank
    for turn in range(2):
        going = [links.post(letter(me, peer, 0, turn, size), peer, FREE) for peer in others(transport)]
        for peer in others(transport):
            box = torch.empty(size, dtype=torch.uint8)
            links.expect(box, peer, FREE).wait()
            check_letter(box, peer, me, 0, turn)
        for pending in going:
            pending.wait()


@question_of_links
def a_buffer_may_be_used_again_when_its_message_is_gone(transport: Transport, links: Links) -> None:
    me, after, before = transport.rank, (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    buffer, box = torch.empty(400_000, dtype=torch.uint8), torch.empty(400_000, dtype=torch.uint8)
    for turn in range(20):
        coming = links.expect(box, before, FREE)
        buffer.copy_(letter(me, after, 0, turn, len(buffer)))
        links.post(buffer, after, FREE).wait()
        buffer.zero_()
        coming.wait()
        check_letter(box, before, me, 0, turn)


@question_of_links
def links_and_verbs_do_not_come_between_one_another(transport: Transport, links: Links) -> None:
    me, peers = transport.rank, others(transport)
    for turn in range(5):
        boxes = {peer: torch.empty(3_000, dtype=torch.uint8) for peer in peers}
        coming = [links.expect(boxes[peer], peer, FREE) for peer in peers]
        for peer in peers:
            transport.send(numbers((2_000,), torch.float32, turn), peer)
        going = [links.post(letter(me, peer, 0, turn, 3_000), peer, FREE) for peer in peers]
        found = transport.move(range(transport.size), [(peer, torch.tensor([turn, me])) for peer in peers], peers)
        assert [t.tolist() for t in found] == [[turn, peer] for peer in peers]
        assert transport.exchange(bytes([me])) == [bytes([rank]) for rank in range(transport.size)]
        for pending in (*coming, *going):
            pending.wait()
        for peer in peers:
            check_letter(boxes[peer], peer, me, 0, turn)
            check_arrived("sent", transport.receive(peer), numbers((2_000,), torch.float32, turn))


@question_of_links
def bytes_from_other_hosts_are_counted(transport: Transport, links: Links) -> None:
    """What comes from the own host is none of them; of the others' bytes, frames are told apart."""
    far = [peer for peer in others(transport) if peer not in near(transport)]
    before = (transport.counted.wired, transport.counted.framed)
    for peer in others(transport):
        transport.send(torch.zeros(1_000), peer)
    for peer in others(transport):
        transport.receive(peer)
    wired, framed = transport.counted.wired - before[0], transport.counted.framed - before[1]
    assert wired - framed == 4_000 * len(far)
    assert 0 < framed <= 200 * len(far)


# ------------------------------------------------------------------------------- what is one's own


@question
def random_streams_are_every_workers_own(transport: Transport, memory: Tensor) -> None:
    """A worker draws the same numbers whether or not others draw between its draws."""

    def draw() -> list[float]:
        return [float(torch.rand(())), random.random(), float(np.random.rand())]

    random_streams.enter("exam", transport.rank)
    undisturbed = [draw() for _ in range(4)]
    transport.fence()
    random_streams.enter("exam", transport.rank)
    found = []
    for _ in range(4):
        found.append(draw())
        transport.fence()
    assert found == undisturbed


@question
def waiting_is_booked_as_waiting(transport: Transport, memory: Tensor) -> None:
    transport.timesheet.start()
    transport.fence()
    transport.timesheet.communicated(0, None)
    assert transport.timesheet.communicate >= 0.0
    assert transport.timesheet.wait >= 0.0


# --------------------------------------------------------------------------------- when one is lost

Verb = Callable[[Transport, int], object]


def and_meet(verb: Verb) -> Verb:
    """Then the verb need not reach the lost worker by itself, for instance because it is on another host."""

    def performed(transport: Transport, lost: int) -> None:
        verb(transport, lost)
        transport.exchange(b"who is there?")

    return performed


def move(transport: Transport, lost: int) -> None:
    peers = others(transport)
    transport.move(range(transport.size), [(peer, torch.zeros(100)) for peer in peers], peers)


def expect(transport: Transport, lost: int) -> None:
    assert transport.links is not None
    transport.links.expect(torch.empty(1 << 20, dtype=torch.uint8), lost, FREE).wait()


def post(transport: Transport, lost: int) -> None:
    assert transport.links is not None
    for _ in range(4):
        transport.links.post(torch.empty(1 << 23, dtype=torch.uint8), lost, FREE).wait()


VERBS: dict[str, Verb] = {
    "exchange": lambda transport, lost: transport.exchange(b"record"),
    "long exchange": lambda transport, lost: transport.exchange(b"record" * 50_000),
    "fence": and_meet(lambda transport, lost: transport.fence()),
    "receive": lambda transport, lost: transport.receive(lost),
    "send": and_meet(lambda transport, lost: transport.send(torch.zeros(1 << 20), lost)),
    "move": move,
}
VERBS_OF_LINKS: dict[str, Verb] = {"expect": expect, "post": and_meet(post)}
DIRECT = ("receive", "expect")  # only the lost worker is waited for; in others it may be one that has lost it before

DEPARTURES: dict[str, Callable[[Transport], None]] = {
    "closes": lambda transport: transport.close(),
    "exits": lambda transport: os._exit(7),
    "is killed": lambda transport: os.kill(os.getpid(), signal.SIGKILL),
}
STOPS = "stops"  # and does not answer any more; noticed by transports that have a timeout


def lose_the_last(transport: Transport, verb: str, departure: str, after: int) -> str:
    """After `after` joint exchanges the last worker goes; "" when each of the others raises PeerLost."""
    lost = transport.size - 1
    for _ in range(after):
        transport.exchange(b"together")
    if transport.rank == lost:
        if departure == STOPS:
            os.kill(os.getpid(), signal.SIGSTOP)
        DEPARTURES[departure](transport)
        return ""
    try:
        (VERBS | VERBS_OF_LINKS)[verb](transport, lost)
    except PeerLost as error:
        named = (lost,) if verb in DIRECT else others(transport)
        if error.rank != transport.rank or error.peer not in named:
            return f"worker {transport.rank} says: {error}"
        why = "it has not answered for" if departure == STOPS else "its connection closed"
        if error.peer == lost and not error.why.startswith(why):
            return f"worker {transport.rank} says: {error}"
        return ""
    finally:
        transport.close()
    return f"worker {transport.rank} did not notice that worker {lost} {departure} ({verb})"


def run_question(transport: Transport, memory: Tensor, name: str) -> str:
    """Raises what the worker's check raises."""
    try:
        (EXAM | EXAM_OF_LINKS)[name](transport, memory)
        transport.exchange(b"done")
    finally:
        transport.close()
    return ""
