"""Messages between the command, the leader and the workers: one JSON object per packet."""

import array
import json
import os
import socket
from typing import Any

LONGEST = 160 * 1024  # bytes of one message; longer texts are cut by their senders


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that preserve the bounds of messages; the death of one is an end-of-file at the other."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: dict[str, Any], *files: int) -> None:
    """Send a message, and open files with it.

    Raises OSError when the other end is closed, TypeError or ValueError for one that JSON cannot hold or too long.
    """
    packet = json.dumps(message, ensure_ascii=False).encode(errors="surrogatepass")
    if len(packet) > LONGEST:
        raise ValueError(f"{len(packet):,} bytes are more than the {LONGEST:,} of a message")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    end.sendmsg([packet], rights)


def content(file: int) -> bytes:
    """The content of a file that came with a message; the file is closed."""
    with os.fdopen(file, "rb") as opened:
        opened.seek(0)
        return opened.read()


def receive(end: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and the files that came with it; None when the other end is closed."""
    try:
        packet, files, _, _ = socket.recv_fds(end, LONGEST, 4)
    except ConnectionError:
        return None, []
    if not packet:
        return None, []
    message: dict[str, Any] = json.loads(packet)
    return message, files
