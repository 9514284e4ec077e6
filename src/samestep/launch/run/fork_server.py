"""The fork server: exec'd once with a pinned environment, imports torch, forks one leader per run.

    command --exec--> server --fork--> leader of a run --fork--> workers
            (1.2 s: import torch)     (10 ms)

It stays single-threaded, since a process forked from one with threads hangs, and it runs no user
code: that happens in the leader, which is new for every run.
"""

import os
import signal
import socket
import sys

import numpy.random  # noqa: F401 - imported once, here, for every process that is forked from this one
import torch  # noqa: F401

from samestep.launch.run import leader
from samestep.system import heap, wire
from samestep.system.processes import die_with_parent, leave


def serve_runs(end: socket.socket) -> None:
    """Fork a leader for every run socket that arrives, until the command closes its end."""
    heap.before_fork()  # of what was imported: else every leader goes through all of it before it forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaders are reaped by the kernel
    while True:
        request, files = wire.receive(end)
        if request is None:
            return
        if os.fork() == 0:
            end.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            leave(leader.lead(request, socket.socket(fileno=files[0])))
        os.close(files[0])


def main() -> None:
    """With the arguments: folder of the package, number of the socket, process id of the command."""
    die_with_parent(int(sys.argv[3]))
    serve_runs(socket.socket(fileno=int(sys.argv[2])))
