"""One host and one link as data: frozen values, each with its table in a cluster's file.

Refusals name the key, its value and the values that are allowed.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from samestep.errors import ClusterRefused
from samestep.system import units

MAX_WORKERS = 1_000_000  # more is a typing error


@dataclass(frozen=True)
class Link:
    """A link over which n bytes take latency + n / bandwidth seconds; in seconds and bytes/s."""

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 <= self.latency < float("inf"):
            raise ClusterRefused(f"latency = {self.latency}: it must be a number of seconds, 0 or more")
        _above_0("bandwidth", self.bandwidth, "a number of bytes/s")


@dataclass(frozen=True)
class Host:
    """One machine. Workers of different speeds have `speeds`, 1.0 being a worker of the profiled machine.

    memory: bytes of all workers together. flops: FLOP/s of one core. memory_bandwidth: bytes/s that all cores
    together copy. Both are for machines that are only described, where nothing can be profiled.
    """

    name: str
    cores: int
    workers: int
    memory: int
    speeds: tuple[float, ...] = ()
    flops: float | None = None
    memory_bandwidth: float | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ClusterRefused(f"the name {self.name!r}: use letters, digits and . _ - only")
        for field in ("cores", "workers", "memory"):
            if (value := getattr(self, field)) < 1:
                raise ClusterRefused(f"{field} = {value}: a host has at least 1")
        if self.speeds and len(self.speeds) != self.workers:
            raise ClusterRefused(
                f"{len(self.speeds)} speeds for {self.workers} workers: give each worker one, or leave speeds out"
            )
        for speed in self.speeds:
            _above_0("speeds", speed, "1.0 for a worker as fast as the machine that was profiled")
        if self.flops is not None:
            _above_0("flops", self.flops, "a number of FLOP/s")
        if self.memory_bandwidth is not None:
            _above_0("memory_bandwidth", self.memory_bandwidth, "a number of bytes/s")


def rounded(value: float, digits: int = 3) -> float:
    """A measured value with as many digits as are significant."""
    return float(f"{value:.{digits}g}")


def _above_0(name: str, value: float, what: str) -> None:
    if not 0 < value < float("inf"):
        raise ClusterRefused(f"{name} = {value}: it must be above 0, {what}")


def host_text(host: Host, count: int) -> str:
    text = f'[[host]]\nname = "{host.name}"\n'
    text += f"count = {count}  # {host.name}0 to {host.name}{count - 1}\n" if count > 1 else ""
    text += f"cores = {host.cores}\nworkers = {host.workers}\n"
    text += f'memory = "{units.write(host.memory, units.BYTES)}"\n'
    text += f"speeds = {list(host.speeds)}\n" if host.speeds else ""
    for name, value, unit in (
        ("flops", host.flops, units.FLOPS),
        ("memory_bandwidth", host.memory_bandwidth, units.BYTES_PER_SECOND),
    ):
        text += "" if value is None else f'{name} = "{units.write(value, unit)}"\n'
    return text


def link_text(link: Link) -> str:
    latency, bandwidth = units.write(link.latency, units.SECONDS), units.write(link.bandwidth, units.BYTES_PER_SECOND)
    return f'latency = "{latency}"\nbandwidth = "{bandwidth}"\n'


QUANTITIES: Mapping[str, units.Units] = {
    "latency": units.SECONDS,
    "bandwidth": units.BYTES_PER_SECOND,
    "flops": units.FLOPS,
    "memory_bandwidth": units.BYTES_PER_SECOND,
}
HOST_FIELDS: Mapping[str, type] = {
    **{"name": str, "count": int, "cores": int, "workers": int},
    **{"memory": object, "speeds": list, "flops": object, "memory_bandwidth": object},
}
LINK_FIELDS: Mapping[str, type] = {"latency": object, "bandwidth": object}


@contextmanager
def refusing_at(place: str) -> Iterator[None]:
    """Prefix refusals raised inside with their place."""
    try:
        yield
    except (ClusterRefused, ValueError) as error:
        raise ClusterRefused(f"{place}: {error}") from None


def check_names(table: object, known: Mapping[str, type], needed: set[str]) -> None:
    """Check the keys of a table, and the types of values other than quantities. Raises ClusterRefused."""
    if not isinstance(table, dict):
        raise ClusterRefused(f"{table!r} is no table: write one with {', '.join(known)}")
    if unknown := [name for name in table if name not in known]:
        raise ClusterRefused(f"unknown key {unknown[0]} (known: {', '.join(known)})")
    if missing := [name for name in known if name in needed and name not in table]:
        raise ClusterRefused(f"{missing[0]} is missing (needed: {', '.join(name for name in known if name in needed)})")
    for name, value in table.items():
        if known[name] is not object and type(value) is not known[name]:
            raise ClusterRefused(f"{name} = {value!r} is no {known[name].__name__}")


def read_hosts(table: Any, place: str) -> list[Host]:
    with refusing_at(place):
        check_names(table, HOST_FIELDS, {"name", "cores", "workers", "memory"})
    with refusing_at(f"{place} ({table['name']})"):
        fields = {name: value for name, value in table.items() if name != "count"} | _quantities(table)
        with refusing_at("memory"):
            fields["memory"] = units.read_whole(table["memory"], units.BYTES)
        with refusing_at("speeds"):
            fields["speeds"] = tuple(units.read(speed, units.RATIO) for speed in table.get("speeds", ()))
        count = table.get("count")
        if count is None:
            return [Host(**fields)]
        if not 1 <= count <= MAX_WORKERS:
            raise ClusterRefused(f"count = {count}: from 1 to {MAX_WORKERS:,} hosts may be alike")
        return [Host(**{**fields, "name": f"{table['name']}{number}"}) for number in range(count)]


def read_link(table: Any, place: str) -> Link:
    with refusing_at(place):
        check_names(table, LINK_FIELDS, {*LINK_FIELDS})
        return Link(**_quantities(table))


def _quantities(table: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, unit in QUANTITIES.items():
        if name in table:
            with refusing_at(name):
                found[name] = units.read(table[name], unit)
    return found
