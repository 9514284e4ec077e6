"""A cluster as data: hosts, the workers on them, and the links between.

    [[host]]                      [within]                 [[link]]
    name = "node"                 latency = "3 us"         from = "node0"
    count = 2                     bandwidth = "5 GB/s"     to = "node1"
    cores = 4                                              latency = "100 us"
    workers = 4                   [between]                bandwidth = "100 Mbit/s"
    memory = "16 GB"              latency = "50 us"
                                  bandwidth = "1 Gbit/s"

`samestep doctor --cluster` writes the file for this machine, a person edits it; a cluster that does not
exist is described by the same kind of file. Nothing here measures, and nothing needs torch.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from samestep.errors import ClusterRefused
from samestep.plan.machine import (
    LINK_FIELDS,
    MAX_WORKERS,
    Host,
    check_names,
    host_text,
    link_text,
    read_hosts,
    read_link,
    refusing_at,
)
from samestep.plan.machine import Link as Link  # the cluster's word too

HEAD = "# a samestep cluster: hosts, their workers, and the links between them. Edit it; --cluster FILE takes it.\n"


@dataclass(frozen=True)
class Cluster:
    """Hosts and links; frozen, and stable as text: `Cluster.parse(str(cluster)) == cluster`.

    Workers are numbered host by host. within: the link between workers of one host; between: of two hosts; links: by
    the names of two hosts, with precedence over both. A link holds for both directions unless the other one has its
    own; that of a host with itself is between its workers.
    """

    hosts: tuple[Host, ...]
    within: Link | None = None
    between: Link | None = None
    links: tuple[tuple[str, str, Link], ...] = ()

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ClusterRefused("there is no host: write each under [[host]]")
        if (workers := sum(host.workers for host in self.hosts)) > MAX_WORKERS:
            raise ClusterRefused(f"{workers:,} workers are more than the {MAX_WORKERS:,} that a cluster may have")
        names = [host.name for host in self.hosts]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ClusterRefused(f"two hosts have the name {twice}: give each one of its own, or one of them a count")
        known = "hosts: " + ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        for a, b, _ in self.links:
            if a not in self._numbers or b not in self._numbers:
                raise ClusterRefused(f"the link from {a} to {b} names a host that is not there ({known})")
        if len(self._links) < len(self.links):
            raise ClusterRefused("two links go from the same host to the same host: leave one of them out")
        self._check_links()

    @property
    def workers(self) -> int:
        return len(self.hosts_of_workers())

    @property
    def speeds(self) -> tuple[float, ...]:
        """The relative speed of every worker."""
        return tuple(speed for host in self.hosts for speed in host.speeds or (1.0,) * host.workers)

    def hosts_of_workers(self) -> tuple[int, ...]:
        """The host of every worker, numbered as in `hosts`."""
        return self._hosts_of_workers

    def link(self, a: int, b: int) -> Link:
        """The link from worker a to worker b."""
        found = self._between_hosts(self._hosts_of_workers[a], self._hosts_of_workers[b])
        assert found is not None, "checked when the cluster was made"
        return found

    def slowest_between_hosts(self, workers: Sequence[int]) -> Link | None:
        """The highest latency and the lowest bandwidth between two hosts of a group; None where it is on one host."""
        first = {self._hosts_of_workers[worker]: worker for worker in reversed(workers)}
        links = [self.link(a, b) for a in first.values() for b in first.values() if a != b]
        return Link(max(k.latency for k in links), min(k.bandwidth for k in links)) if links else None

    def first(self, n: int) -> "Cluster":
        """The first n workers, on the hosts where they are. Raises ClusterRefused when there are fewer."""
        if not 1 <= n <= self.workers:
            raise ClusterRefused(f"{n} workers of a cluster that has {self.workers}: choose 1 to {self.workers}")
        ends = accumulate(host.workers for host in self.hosts)
        left = ((host, host.workers - max(0, end - n)) for host, end in zip(self.hosts, ends, strict=True))
        hosts = tuple(replace(host, workers=k, speeds=host.speeds[:k]) for host, k in left if k > 0)
        names = {host.name for host in hosts}
        return replace(self, hosts=hosts, links=tuple(link for link in self.links if {*link[:2]} <= names))

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the cluster."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        tables = [host_text(host, count) for host, count in _alike(self.hosts)]
        for name, link in (("within", self.within), ("between", self.between)):
            tables += [] if link is None else [f"[{name}]\n{link_text(link)}"]
        tables += [f'[[link]]\nfrom = "{a}"\nto = "{b}"\n{link_text(link)}' for a, b, link in self.links]
        return "\n".join([HEAD, *tables])

    @staticmethod
    def parse(text: str, source: str = "cluster") -> "Cluster":
        """Read a cluster's text. Raises ClusterRefused with the place of the error."""
        try:
            fields = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ClusterRefused(f"{source} is not TOML: {error}; `samestep doctor --cluster` writes one") from None
        with refusing_at(source):
            check_names(fields, {"host": list, "within": dict, "between": dict, "link": list}, {"host"})
            hosts = tuple(host for n, table in enumerate(fields["host"]) for host in read_hosts(table, f"host {n}"))
            defaults = {name: read_link(fields[name], name) for name in ("within", "between") if name in fields}
            links = tuple(_read_named(table, f"link {n}") for n, table in enumerate(fields.get("link", ())))
            return Cluster(hosts, links=links, **defaults)

    @staticmethod
    def read(file: str | Path) -> "Cluster":
        """The cluster in a file. Raises ClusterRefused, also when it cannot be read."""
        try:
            return Cluster.parse(Path(file).read_text(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "is not text"
            raise ClusterRefused(f"--cluster {file} {why}: `samestep doctor --cluster > FILE` writes one") from None

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {host.name: number for number, host in enumerate(self.hosts)}

    @cached_property
    def _hosts_of_workers(self) -> tuple[int, ...]:
        return tuple(number for number, host in enumerate(self.hosts) for _ in range(host.workers))

    @cached_property
    def _links(self) -> Mapping[tuple[int, int], Link]:
        return {(self._numbers[a], self._numbers[b]): link for a, b, link in self.links}

    def _between_hosts(self, a: int, b: int) -> Link | None:
        named = self._links.get((a, b)) or self._links.get((b, a))
        return named or (self.within if a == b else self.between)

    def _check_links(self) -> None:
        for a, host in enumerate(self.hosts):
            if host.workers > 1 and self._between_hosts(a, a) is None:
                raise ClusterRefused(
                    f"{host.name} has {host.workers} workers, and no link is between them: write [within] with latency "
                    "and bandwidth"
                )
            others = range(a) if self.between is None else ()
            for other in (self.hosts[b] for b in others if self._between_hosts(a, b) is None):
                raise ClusterRefused(
                    f"no link leads from {other.name} to {host.name}: write [between] for all hosts, or [[link]] with "
                    f'from = "{other.name}" and to = "{host.name}"'
                )


def _alike(hosts: Sequence[Host]) -> Iterator[tuple[Host, int]]:
    """Hosts grouped: those whose names differ only by a final number 0, 1, 2, ... become one host and their count."""
    at = 0
    while at < len(hosts):
        first, count = hosts[at], 1
        if first.name.endswith("0") and len(first.name) > 1:
            name = first.name[:-1]
            while hosts[at + count : at + count + 1] == (replace(first, name=f"{name}{count}"),):
                count += 1
            first = replace(first, name=name) if count > 1 else first
        yield first, count
        at += count


def _read_named(table: Any, place: str) -> tuple[str, str, Link]:
    with refusing_at(place):
        check_names(table, {"from": str, "to": str, **LINK_FIELDS}, {"from", "to", *LINK_FIELDS})
    ends = table["from"], table["to"]
    return *ends, read_link({name: table[name] for name in LINK_FIELDS}, f"{place} ({' to '.join(ends)})")
