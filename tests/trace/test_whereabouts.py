"""What a worker writes of itself is seen whole, at any time."""

import mmap
import os
import signal
from collections.abc import Iterator

import pytest

from commands import wait_until
from samestep.schedule.actions import Agree, Forward
from samestep.trace.whereabouts import LEFT, NOBODY, SIZE, Whereabouts, place_of, wait_of

RANK = 1


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE * 3) as shared:
        yield shared


def test_a_reader_sees_the_call_the_step_and_the_action(memory: mmap.mmap) -> None:
    own = Whereabouts(memory, RANK)
    with own.during("step", 7):
        own.enter(Forward(2))
        found = place_of(memory, RANK)
        assert (found.call, found.step, found.number, found.action) == ("step", 7, 1, "Forward(shard=2, segment=0)")
    after = place_of(memory, RANK)
    assert (after.call, after.action, after.done, after.calls) == ("", "", 8, 1)
    assert place_of(memory, RANK - 1).call == ""
    own.leave()
    assert place_of(memory, RANK).call == LEFT


def test_a_wait_begins_and_ends_and_is_no_work_of_the_steps(memory: mmap.mmap) -> None:
    own = Whereabouts(memory, RANK)
    with own.during("step", 0):
        own.waits(2, b"record")
        assert (wait_of(memory, RANK).peer, wait_of(memory, RANK).verb) == (2, "record")
        own.goes_on(100.0)
        assert (wait_of(memory, RANK).peer, wait_of(memory, RANK).waited) == (NOBODY, 100.0)
    assert place_of(memory, RANK).busy < 0


def test_nobody_waits_before_the_first_wait(memory: mmap.mmap) -> None:
    Whereabouts(memory, 0)
    assert wait_of(memory, 0).peer == NOBODY
    assert wait_of(memory, 2).peer == NOBODY  # who has not even come


def test_workers_who_meet_have_one_tag() -> None:
    one, other = Whereabouts(), Whereabouts()
    assert one.tag == b""
    for own, shard in ((one, 0), (other, 3)):
        own.enter(Forward(shard))
        own._step = 4
        own.enter(Agree())
    assert one.tag == other.tag == b"Agree of step 4"
    with one.during("evaluate", 5):
        assert one.tag == b"evaluate after step 5"


def test_a_call_inside_of_a_call_gives_the_outer_one_back() -> None:
    own = Whereabouts()
    with own.during("save", 3):
        with own.during("digest", 3):
            pass
        assert own.tag == b"save after step 3"


def test_a_very_long_action_is_cut(memory: mmap.mmap) -> None:
    own = Whereabouts(memory, RANK)
    own.enter("x" * 10_000)
    assert set(place_of(memory, RANK).action) == {"x"}


def write_for_ever(memory: mmap.mmap) -> None:
    """Number and action always agree."""
    own = Whereabouts(memory, RANK)
    number = 0
    while True:
        number += 1
        own.enter(f"{number}".rjust(100, "."))
        own.waits(number, b"record")
        own.goes_on(1.0)


def test_nobody_sees_half_of_a_place_and_a_stopped_writer_can_be_read(memory: mmap.mmap) -> None:
    writer = os.fork()
    if writer == 0:
        try:
            write_for_ever(memory)
        finally:
            os._exit(1)
    try:
        wait_until("the first", lambda: place_of(memory, RANK).number > 10)
        seen: set[int] = set()
        while len(seen) < 100:  # with a core for both, it changes only when the writer has its turn
            found = place_of(memory, RANK)
            assert int(found.action.strip(".")) == found.number
            wait = wait_of(memory, RANK)
            assert wait.peer == NOBODY or wait.peer == wait.waited + 1
            seen.add(found.number)
        for _ in range(50):  # wherever it is stopped
            os.kill(writer, signal.SIGSTOP)
            os.waitpid(writer, os.WUNTRACED)
            found = place_of(memory, RANK)
            assert int(found.action.strip(".")) == found.number
            os.kill(writer, signal.SIGCONT)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
