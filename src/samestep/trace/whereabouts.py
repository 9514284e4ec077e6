"""The whereabouts of a worker, for those who look from outside.

A worker writes with plain stores into memory that another process sees too, and needs nobody for it: whoever
looks sees the truth while the worker holds the interpreter's lock, is stopped, or is dead.

    place   the call it is in (step, evaluate, ...), the step, the action and when it was entered
    wait    for whom it waits right now, since when, and how long it has waited in all

    counter 6          a writer fills the slot that its next number names, then stores the number;
    slot 0 [place 6]   a reader takes the slot of the number it sees, and looks whether the number still
    slot 1 [place 5]   holds: so nobody locks, no reader sees half of a place, and a writer that is
                       stopped in the midst of writing leaves the last whole one to be read

Times are seconds of the monotonic clock, which all processes of one host share.
"""

import contextlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from samestep.errors import Disagreement
from samestep.schedule.actions import class_name

PLACE = struct.Struct("<qqqqddd24s104s")
WAIT = struct.Struct("<qdd16s")
COUNTERS = 64  # bytes
PLACES = COUNTERS, COUNTERS + PLACE.size
WAITS = PLACES[1] + PLACE.size, PLACES[1] + PLACE.size + WAIT.size
SIZE = 512  # bytes of a worker
NOBODY = -1
LEFT = "left"  # the call of a worker that has closed its connections
TRIES = 1000  # of a reader; one fails only when a whole place was written meanwhile


@dataclass(frozen=True)
class Place:
    """calls: the number of the call; `call` is "" between two. action: as text, "" between two calls."""

    calls: int = 0
    step: int = 0
    number: int = 0  # of actions entered so far
    done: int = 0  # steps
    entered: float = 0.0
    call_entered: float = 0.0
    busy: float = 0.0  # seconds in steps done, less what was waited
    call: str = ""
    action: str = ""


@dataclass(frozen=True)
class WaitState:
    """peer: NOBODY while the worker does not wait. changed: when it began to wait, or went on."""

    peer: int = NOBODY
    changed: float = 0.0
    waited: float = 0.0  # seconds in all, up to `changed`
    verb: str = ""


class Whereabouts:
    """The writer's side. memory: of all workers, SIZE bytes each; without one, nobody can look."""

    def __init__(self, memory: Any = None, rank: int = 0) -> None:
        whole = memoryview(bytearray(SIZE) if memory is None else memory)
        at = 0 if memory is None else rank * SIZE
        self._memory = whole[at : at + SIZE]
        self._counters = whole[at : at + COUNTERS].cast("Q")
        self._place_number, self._wait_number = self._counters[0], self._counters[1]
        self._texts: dict[Any, bytes] = {}
        self._calls = self._step = self._number = self._done = 0
        self._entered = self._call_entered = time.monotonic()
        self._busy = self._waited = 0.0
        self._call = self._action = b""
        self._kind = ""
        self._write()

    @property
    def tag(self) -> bytes:
        """Text that must be equal for all workers who meet, such as b"Agree of step 7"; empty between two calls."""
        if self._kind:
            return b"%s of step %d" % (self._kind.encode(), self._step)
        return b"%s after step %d" % (self._call, self._step) if self._call else b""

    @property
    def done(self) -> int:
        """Steps done."""
        return self._done

    @contextlib.contextmanager
    def during(self, call: str, step: int) -> Iterator[None]:
        """Inside, the worker is in that call of its trainer."""
        before = self._call, self._step
        self._calls += 1
        self._begin(call.encode(), step)
        waited, began = self._waited, self._entered
        try:
            yield
            if call == "step":
                self._done = step + 1
                self._busy += time.monotonic() - began - (self._waited - waited)
        finally:
            self._begin(*before)

    def enter(self, action: Any) -> None:
        """An action of the schedule begins."""
        self._number += 1
        text = self._texts.get(action)
        self._action = self._text(action) if text is None else text
        self._kind = class_name(type(action))
        self._entered = time.monotonic()
        self._write()

    def waits(self, peer: int, verb: bytes) -> None:
        self._write_wait(peer, verb)

    def goes_on(self, seconds: float) -> None:
        """Waiting is over, after `seconds`."""
        self._waited += seconds
        self._write_wait(NOBODY, b"")

    def leave(self) -> None:
        self._begin(LEFT.encode(), self._step)

    def _begin(self, call: bytes, step: int) -> None:
        self._call, self._step, self._action, self._kind = call, step, b"", ""
        self._entered = self._call_entered = time.monotonic()
        self._write()

    def _write(self) -> None:
        number = self._place_number = self._place_number + 1
        PLACE.pack_into(
            self._memory, PLACES[number & 1], self._calls, self._step, self._number, self._done, self._entered,
            self._call_entered, self._busy, self._call, self._action,
        )  # fmt: skip
        self._counters[0] = number

    def _write_wait(self, peer: int, verb: bytes) -> None:
        number = self._wait_number = self._wait_number + 1
        WAIT.pack_into(self._memory, WAITS[number & 1], peer, time.monotonic(), self._waited, verb)
        self._counters[1] = number

    def _text(self, action: Any) -> bytes:
        if len(self._texts) > 10_000:
            self._texts.clear()
        text = self._texts[action] = str(action).encode()[:104]
        return text


def place_of(memory: Any, rank: int) -> Place:
    """The last place that worker `rank` wrote."""
    found = _read(memory, rank, 0, PLACES, PLACE)
    return replace(Place(*found), call=_plain(found[-2]), action=_plain(found[-1]))


def wait_of(memory: Any, rank: int) -> WaitState:
    peer, changed, waited, verb = _read(memory, rank, 1, WAITS, WAIT)
    return WaitState(peer if changed else NOBODY, changed, waited, _plain(verb))


def _read(memory: Any, rank: int, counter: int, slots: tuple[int, int], form: struct.Struct) -> tuple[Any, ...]:
    whole = memoryview(memory)
    counters = whole[rank * SIZE : rank * SIZE + COUNTERS].cast("Q")
    for _ in range(TRIES):
        number = counters[counter]
        found = form.unpack_from(whole, rank * SIZE + slots[number & 1])
        if counters[counter] == number:
            break
    return found


def _plain(text: bytes) -> str:
    return text.rstrip(b"\0").decode(errors="replace")


def check_same_place(rank: int, own: bytes, peer: int, other: bytes) -> None:
    """Raises Disagreement where two workers meet in different calls or actions (`Whereabouts.tag`)."""
    if own != other:
        mine, theirs = (tag.decode(errors="replace") or "no call of its trainer" for tag in (own, other))
        raise Disagreement(
            f"worker {rank} is in {mine} and meets worker {peer}, which is in {theirs}: every worker must make the "
            "same calls in the same order and as often; look for a call under `if rank == ...`, for calls in another "
            "order, and for a loop that ends earlier on one worker"
        )
