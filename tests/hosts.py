"""Hosts for tests: network namespaces of this machine, joined by a bridge, with a rate limit and control groups.

    host 0 (namespace)   eth 10.91.0.1 ──veth── port 0 ┐
    host 1               eth 10.91.0.2 ──veth── port 1 ┤ bridge, in a namespace of its own
    every eth has a token bucket, so what leaves a host is limited; from three hosts on every port too, so what arrives
    from several is

A bucket's work for every packet is done on the cores that compute, where a network card would do it by itself: hence
no second one where there is nothing for it to limit.

They share one kernel, and so its clock, memory and cores. Nothing is touched outside of the namespaces.
Names hold the process id of their maker: what one that was killed has left, the next one removes.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import warm

PREFIX = "samestep"
BURSTS = {"100mbit": "8kb", "1gbit": "80kb", "10gbit": "512kb"}
"""By rate: what may leave at once after a pause, about half a millisecond at full speed. With 512 KB, 256 KB now and
then cross 1 Gbit/s eight times too fast; less than this costs bandwidth. From 1 Gbit/s on TCP's packets of 64 KB fit:
they pass whole. Where they do not, the kernel cuts them on the cores that compute, at ten times their cost, which a
network card does by itself."""
_counter = itertools.count()


class HostsUnavailable(RuntimeError):
    """The rights or programs for test hosts are missing here."""


class Host:
    """One host, as long as its `Hosts` are open."""

    def __init__(self, name: str, number: int, bridge: str) -> None:
        self.name, self.number, self.interface = name, number, "eth"
        self.address = f"10.91.0.{number + 1}"
        self._bridge, self._port = bridge, f"port{number}"
        self._groups: list[Path] = []

    def popen(self, command: Sequence[str], cpu: float | None = None, **options: Any) -> "subprocess.Popen[Any]":
        """Start a process on this host. cpu: the share of one core that it and its children get."""
        group = None if cpu is None else self._group(cpu)

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        inside = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(inside, start_new_session=True, preexec_fn=enter, **options)

    def samestep(self, arguments: Sequence[str], *, cold: bool = False, **options: Any) -> "subprocess.Popen[Any]":
        """The command on this host. cold: by exec, with an import of torch of its own."""
        if cold or not warm.is_possible():
            return self.popen([sys.executable, "-m", "samestep", *arguments], **options)
        return warm.WarmCommand(list(arguments), self.name, start_new_session=True, **options)

    def link_down(self) -> None:
        run("ip", "-n", self._bridge, "link", "set", self._port, "down")

    def link_up(self) -> None:
        run("ip", "-n", self._bridge, "link", "set", self._port, "up")

    def sent(self) -> int:
        """Bytes that have left this host."""
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        return int(run("ip", "netns", "exec", self.name, "cat", path))

    def pids(self) -> list[int]:
        return [int(pid) for pid in run("ip", "netns", "pids", self.name).split()]

    def connect(self, limit: Sequence[str], *, hears_many: bool) -> None:
        """limit: the bucket's. hears_many: whether more may arrive than one other host sends."""
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        pair = ["type", "veth", "peer", "name", self._port, "netns", self._bridge]
        run("ip", "link", "add", self.interface, "netns", self.name, *pair)
        run("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", self.interface)
        run("ip", "-n", self._bridge, "link", "set", self._port, "master", "bridge", "up")
        run("ip", "-n", self.name, "link", "set", self.interface, "up")
        for space, device in ((self.name, self.interface), (self._bridge, self._port))[: 1 + hears_many]:
            run("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def _group(self, cpu: float) -> Path:
        group = cpu_groups() / f"{self.name}-{len(self._groups)}"
        group.mkdir()
        self._groups.append(group)
        period = 20_000  # microseconds: short, so that a step of 100 ms is slowed evenly
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{int(cpu * period)} {period}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(int(cpu * period)))
        return group


class Hosts:
    """A context: `with Hosts(2, rate="1gbit") as hosts: hosts[0].popen(...)`. Ends every process on them.

    rate: one of BURSTS.
    """

    def __init__(self, count: int, rate: str = "1gbit", latency: str = "50ms") -> None:
        check_available()
        remove_leftovers()
        self.name = f"{PREFIX}-{os.getpid()}-{next(_counter)}"
        self._bridge = f"{self.name}-b"
        self._limit = ["rate", rate, "burst", BURSTS[rate], "latency", latency]
        self._hosts = [Host(f"{self.name}-{number}", number, self._bridge) for number in range(count)]

    def __enter__(self) -> Self:
        try:
            run("ip", "netns", "add", self._bridge)
            run("ip", "-n", self._bridge, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", self._bridge, "link", "set", "bridge", "up")
            for host in self._hosts:
                host.connect(self._limit, hears_many=len(self._hosts) > 2)
        except BaseException:
            remove(self.name)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        remove(self.name)

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    def start_workers(
        self, counts: Sequence[int], command: Sequence[str], port: int = 29_400, env: Mapping[str, str] | None = None,
        cpu: Sequence[float | None] | None = None, **options: Any,
    ) -> "list[subprocess.Popen[Any]]":  # fmt: skip
        """`counts[h]` workers on host h, as a launcher that sets torch's variables would. cpu: per host."""
        found, total = [], sum(counts)
        for host, count in zip(self._hosts, counts, strict=True):
            for _ in range(count):
                world = {"RANK": str(len(found)), "WORLD_SIZE": str(total), "MASTER_ADDR": self._hosts[0].address}
                every = {**os.environ, **(env or {}), **world, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
                share = None if cpu is None else cpu[host.number]
                found.append(host.popen(command, share, env=every, **options))
        return found


def report_of(counts: Sequence[int], *arguments: str) -> dict[str, Any]:
    """Worker 0's last line, of `samestep train` with these arguments on hosts that 1 Gbit/s joins."""
    command = [sys.executable, "-m", "samestep", "train", *arguments, "--json", "--quiet"]
    with Hosts(len(counts), rate="1gbit") as hosts:
        env = {"GLOO_SOCKET_IFNAME": "eth"}
        workers = hosts.start_workers(counts, command, env=env, stdout=subprocess.PIPE)
        texts = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * sum(counts)
    found: dict[str, Any] = json.loads(texts[0].splitlines()[-1])
    return found


def run(*command: str) -> str:
    """Its output. Raises HostsUnavailable with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostsUnavailable(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def check_available() -> None:
    """Raises HostsUnavailable with the reason."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise HostsUnavailable(f"the programs {', '.join(missing)} (iproute2) are missing")
    if os.geteuid() != 0:
        raise HostsUnavailable("network namespaces need root")


def cpu_groups() -> Path:
    """Where control groups for processor time are made."""
    for path in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        if os.access(path, os.W_OK) and any((path / n).exists() for n in ("cpu.shares", "cgroup.subtree_control")):
            return path
    raise HostsUnavailable("there is no control group for processor time that this process may write to")


def remove(name: str) -> None:
    """End what runs in the namespaces of one `Hosts`, and remove them and their control groups."""
    spaces = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.startswith(f"{name}-")]
    for space in spaces:
        for pid in run("ip", "netns", "pids", space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    for space in spaces:
        run("ip", "netns", "del", space)
    with contextlib.suppress(HostsUnavailable):
        for group in cpu_groups().glob(f"{name}-*"):
            for _ in range(1000):  # until the processes just killed have left it
                try:
                    group.rmdir()
                    break
                except OSError:
                    os.sched_yield()


def remove_leftovers() -> None:
    """Of processes that are gone."""
    for name in set(re.findall(rf"^({PREFIX}-\d+-\d+)-", run("ip", "netns", "list"), re.MULTILINE)):
        if not Path(f"/proc/{name.split('-')[1]}").exists():
            remove(name)
