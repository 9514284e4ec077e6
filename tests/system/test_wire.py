import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samestep.system import wire

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = wire.pair()
    with a, b:
        yield a, b


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.dictionaries(st.text(), json_values, max_size=5))
def test_a_message_arrives_as_it_was(ends: tuple[socket.socket, socket.socket], message: dict[str, Any]) -> None:
    wire.send(ends[0], message)
    assert wire.receive(ends[1]) == (message, [])


def test_messages_keep_apart_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    for number in range(20):
        wire.send(ends[0], {"number": number, "text": "x" * number * 100})
    assert [wire.receive(ends[1])[0]["number"] for _ in range(20)] == list(range(20))  # type: ignore[index]


def test_both_ends_may_speak(ends: tuple[socket.socket, socket.socket]) -> None:
    for a, b in (ends, ends[::-1]):
        wire.send(a, {"from": a.fileno()})
        assert wire.receive(b)[0] == {"from": a.fileno()}


def test_open_files_travel_with_a_message(ends: tuple[socket.socket, socket.socket]) -> None:
    handle = os.memfd_create("content")
    os.write(handle, b"weights")
    wire.send(ends[0], {"event": "finished"}, handle)
    os.close(handle)
    message, files = wire.receive(ends[1])
    assert message == {"event": "finished"}
    (found,) = files
    assert os.pread(found, 100, 0) == b"weights"
    os.close(found)


def test_a_closed_end_is_an_end_of_file(ends: tuple[socket.socket, socket.socket]) -> None:
    wire.send(ends[0], {"last": "words"})
    ends[0].close()
    assert wire.receive(ends[1]) == ({"last": "words"}, [])
    assert wire.receive(ends[1]) == (None, [])
    with pytest.raises(OSError, match="Broken pipe"):
        wire.send(ends[1], {"anybody": "there"})


def test_an_end_closed_with_messages_unread_is_an_end_of_file_too(ends: tuple[socket.socket, socket.socket]) -> None:
    wire.send(ends[1], {"never": "read"})
    ends[0].close()
    assert wire.receive(ends[1]) == (None, [])


def test_the_longest_message_fits_and_a_longer_one_is_refused_by_its_length(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    overhead = len(b'{"text": ""}')
    longest = {"text": "x" * (wire.LONGEST - overhead)}
    wire.send(ends[0], longest)
    assert wire.receive(ends[1])[0] == longest
    with pytest.raises(ValueError, match="are more than the"):
        wire.send(ends[0], {"text": longest["text"] + "x"})


def test_text_that_is_no_unicode_survives(ends: tuple[socket.socket, socket.socket]) -> None:
    """A file name that Linux allows: surrogate escapes stand for its bytes."""
    message = {"file": os.fsdecode(b"caf\xe9.py"), "text": "∇L = Σ"}
    wire.send(ends[0], message)
    assert wire.receive(ends[1])[0] == message


def test_what_json_does_not_hold_is_refused_before_anything_is_sent(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    with pytest.raises(TypeError):
        wire.send(ends[0], {"object": object()})
    ends[0].close()
    assert wire.receive(ends[1]) == (None, [])


def test_pairs_know_nothing_of_one_another() -> None:
    with ExitStack() as stack:
        pairs = [tuple(stack.enter_context(end) for end in wire.pair()) for _ in range(2)]
        wire.send(pairs[0][0], {"for": "the first"})
        pairs[1][0].close()
        assert wire.receive(pairs[1][1]) == (None, [])
        assert wire.receive(pairs[0][1])[0] == {"for": "the first"}
