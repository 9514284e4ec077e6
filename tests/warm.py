r"""Commands without the import of torch: they are forked from a process that has it.

    pytest --exec--> warm process --clone, as pytest's child--> python -m samestep ...
                     (2 s, once)                                  \--fork instead of exec--> fork server

To a test, a warm command is a `subprocess.Popen` of its own. It has the mark in its environment, its own folder,
streams and signals, and is what `python -m samestep` is in all but its start: `cold=True` has the real one.
"""

import atexit
import contextlib
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

MARK = "SAMESTEP_TEST_MARK"
MARK_LENGTH = 32
CLONE_PARENT, CLONE_NEWNET, SYS_CLONE = 0x8000, 0x40000000, {"x86_64": 56, "aarch64": 220}
SOURCES = Path(__file__).parent


def is_possible() -> bool:
    """Whether this system can clone a process for another one's parent."""
    return sys.platform == "linux" and os.uname().machine in SYS_CLONE


class WarmCommand(subprocess.Popen[str]):
    """`python -m samestep *arguments` as `subprocess.Popen` would start it, or `python script *arguments`.

    namespace: of the network, by its name.
    """

    def __init__(
        self, arguments: list[str], namespace: str | None = None, script: Path | None = None, **options: Any
    ) -> None:
        self._namespace, self._script = namespace, script
        program = ["-m", "samestep"] if script is None else [str(script)]
        super().__init__([sys.executable, *program, *arguments], **options)

    def _execute_child(  # type: ignore[override]
        self, args: list[str], executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any, cwd: Any,
        env: Mapping[str, str], startupinfo: Any, creationflags: int, shell: bool, p2cread: int, p2cwrite: int,
        c2pread: int, c2pwrite: int, errread: int, errwrite: int, restore_signals: bool, gid: Any, gids: Any, uid: Any,
        umask: int, start_new_session: bool, process_group: int,
    ) -> None:  # fmt: skip
        assert preexec_fn is None
        order = {
            "script": None if self._script is None else str(self._script),
            "arguments": args[3:] if self._script is None else args[2:],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "session": start_new_session,
            "namespace": self._namespace,
        }
        given = [p2cread, c2pwrite, errwrite]
        streams = [own if stream == -1 else stream for own, stream in enumerate(given)]
        self.pid = _warm_process().order(order, streams)
        self._child_created = True  # type: ignore[attr-defined]
        self._close_pipe_fds(*(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite))  # type: ignore[attr-defined]


class _WarmProcess:
    def __init__(self) -> None:
        sys.path.append(str(SOURCES.parent / "src"))
        from samestep.launch.environment import server_environment

        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-B", "-P", __file__, str(theirs.fileno())],
                env={**server_environment(), MARK: "0" * MARK_LENGTH},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._end.settimeout(60)
        atexit.register(self.close)

    def close(self) -> None:
        self._end.close()
        self._process.wait()

    def order(self, order: dict[str, Any], streams: list[int]) -> int:
        with tempfile.TemporaryFile() as file:  # an environment may be too long for a message
            file.write(json.dumps(order).encode())
            file.flush()
            socket.send_fds(self._end, [b"o"], [file.fileno(), *streams])
        return int(self._end.recv(20))


@cache
def _warm_process() -> _WarmProcess:
    return _WarmProcess()


# ------------------------------------------------------------------------------------------------ the warm process


def _clone() -> int:
    """`os.fork`, but the new process is a child of this one's parent."""
    libc, python = ctypes.PyDLL(None), ctypes.pythonapi
    call = libc.syscall
    call.restype = ctypes.c_long
    python.PyOS_BeforeFork()
    pid = int(call(SYS_CLONE[os.uname().machine], CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return pid


def _set_mark(mark: str) -> None:
    """In the memory that the kernel shows as /proc/PID/environ, where tests look for it."""
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47])
    shown = Path("/proc/self/environ").read_bytes()
    at = shown.index(f"{MARK}=".encode()) + len(MARK) + 1
    ctypes.memmove(start + at, mark.encode(), MARK_LENGTH)


class _ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """Forks fork servers, which would only import again what is there already."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any, cwd: Any,
                       env: Any, *more: Any) -> None:  # fmt: skip
        if not (isinstance(args, list) and len(args) > 3 and "fork_server import main" in args[3]):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
            return
        p2cread, ends = more[3], more[3:9]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.dup2(p2cread, 0)
                for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
                    if number > 2 and number not in pass_fds:
                        with contextlib.suppress(OSError):  # the one that listed the others is closed
                            os.close(number)
                os.environ.clear()
                os.environ.update(env)
                sys.argv = ["-c", *args[4:]]
                del sys.path[0]
                from samestep.launch.run import fork_server

                fork_server.main()
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


def _begin(order: dict[str, Any], streams: list[int], end: socket.socket) -> None:
    """What `exec` does to a process, in the child. Then whoever asked for it knows its number."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    if order["session"]:
        os.setsid()
    if order["namespace"] is not None:
        space = os.open(f"/var/run/netns/{order['namespace']}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(space, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(space)
    environment = order["environment"]
    if MARK in environment:
        _set_mark(environment[MARK])
    end.send(str(os.getpid()).encode())
    end.detach()
    os.closerange(3, 1024)
    pinned = {name: os.environ[name] for name in order["pinned"]}
    os.environ.clear()
    os.environ.update(environment | pinned)
    os.chdir(order["folder"])
    tempfile.tempdir = None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    script = order["script"]
    sys.path.insert(0, order["folder"] if script is None else str(Path(script).parent))
    sys.argv = [script or "-m", *order["arguments"]]
    subprocess.Popen = _ForkingPopen  # type: ignore[misc]


def _serve(end: socket.socket) -> Callable[[], object]:
    """Returns in each command what it does, and in the end something that does nothing."""
    import samestep.launch.hosts.join_run
    import samestep.launch.hosts.own_loop
    import samestep.launch.run.fork_server  # noqa: F401
    from samestep import cli  # noqa: F401
    from samestep.launch.environment import PINNED
    from samestep.system import heap

    heap.before_fork()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        text, files, _, _ = socket.recv_fds(end, 1, 4)
        if not text:
            return lambda: None
        with open(files[0], "rb") as file:  # noqa: PTH123 - a number
            file.seek(0)
            order = json.load(file)
        if _clone() == 0:
            _begin({**order, "pinned": list(PINNED)}, files[1:], end)
            if order["script"] is not None:
                return partial(runpy.run_path, order["script"], run_name="__main__")
            return partial(runpy.run_module, "samestep", run_name="__main__", alter_sys=True)
        for number in files[1:]:
            os.close(number)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))()
