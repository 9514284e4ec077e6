"""The facts as plain text, one line each, and as a cluster file of one host."""

import re
from collections.abc import Iterator

from samestep.doctor.facts import Facts, Interface, MachineSpeed
from samestep.numerics.numerics import fingerprint_of
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Host, Link, rounded
from samestep.system import units

Lines = Iterator[tuple[str, str]]
TO_FILL_IN = """
# More hosts are more [[host]] tables, or a count in this one. Links between hosts were not measured; fill them in:
# [between]
# latency = "50 us"
# bandwidth = "1 Gbit/s"
"""


def as_text(facts: Facts) -> str:
    """All facts, in groups under their names."""
    groups = {
        "versions": ((name, version or "not installed") for name, version in facts.versions.items()),
        "machine": _machine(facts),
        "limits": _limits(facts),
        "environment": iter(facts.environment.items()),
        "launchers": _launchers(facts),
        "network": (_interface(interface) for interface in facts.interfaces),
        "measured": _measured(facts.measured) if facts.measured else iter([("failed", facts.failure or "")]),
    }
    return "\n\n".join(_group(name, list(lines)) for name, lines in groups.items())


def _group(name: str, lines: list[tuple[str, str]]) -> str:
    width = max((len(label) for label, _ in lines), default=0)
    return "\n".join([name, *(f"  {label:{width}}  {value}" for label, value in lines or [("(nothing)", "")])]).rstrip()


def size(nbytes: float | None) -> str:
    """A number of bytes with three digits."""
    return "no limit" if nbytes is None else units.write(rounded(nbytes), units.BYTES)


def rate(bytes_per_second: float) -> str:
    return units.write(rounded(bytes_per_second), units.BYTES_PER_SECOND)


def seconds(value: float) -> str:
    return units.write(rounded(value), units.SECONDS)


def _machine(facts: Facts) -> Lines:
    cpu, group, memory = facts.processor, facts.control_group, facts.memory
    yield "host", facts.host
    yield "system", facts.system
    yield "processor", cpu.model
    yield "cores", f"{cpu.physical} physical, {cpu.logical} logical, may run on {_ranges(cpu.affinity)}"
    version = "none" if group.version is None else f"version {group.version}"
    quota = "no quota" if group.cores is None else f"{group.cores:g} cores"
    yield "control group", f"{version}; CPU: {quota}; memory: {size(group.memory)}"
    yield "memory", f"{size(memory.total)}, available {size(memory.available)}"
    shared = "none" if memory.shared is None else f"{size(memory.shared)}, free {size(memory.shared_free)}"
    yield "/dev/shm", shared
    yield "MKL mode", facts.mkl
    for gpu in facts.measured.gpus if facts.measured else ():
        yield "GPU", gpu


def _limits(facts: Facts) -> Lines:
    limits = facts.limits
    for name, value in (("open files", limits.open_files), ("processes", limits.processes)):
        yield name, "no limit" if value is None else str(value)
    yield "locked memory", size(limits.locked_memory)
    yield "ports", "unknown" if limits.ports is None else f"{limits.ports[0]} to {limits.ports[1]}"
    yield "loopback", "up" if limits.loopback else "down: workers started apart cannot meet"


def _launchers(facts: Facts) -> Lines:
    yield "seen", ", ".join(facts.launchers.seen) or "none"
    yield "commands", ", ".join(facts.launchers.found) or "none"
    yield "this process", facts.launchers.world


def _interface(interface: Interface) -> tuple[str, str]:
    speed = "speed unknown" if interface.speed is None else rate(interface.speed)
    return interface.name, ", ".join(["up" if interface.up else "down", speed, *interface.addresses])


def _measured(found: MachineSpeed) -> Lines:
    all_threads = f"{found.threads} threads"
    libraries = [name for name, there in (("MKL", found.mkl), ("oneDNN", found.onednn)) if there]
    yield "torch", f"uses {found.isa}, has {' and '.join(libraries) or 'neither MKL nor oneDNN'}"
    if found.kernels:
        kinds = ", ".join(f"{name} {text}" for name, text in found.kernels.items())
        yield "kernels", f"{fingerprint_of(found.kernels)} ({kinds})"
    yield "copying", f"{rate(found.copy)} with 1 thread, {rate(found.copy_all)} with {all_threads}"
    one, everything = (units.write(rounded(value), units.FLOPS) for value in (found.products, found.products_all))
    yield "float32 products", f"{one} with 1 thread, {everything} with {all_threads}"
    yield "exchange, fence", f"{seconds(found.links.exchange)}, {seconds(found.links.fence)} between two workers"
    for name, curve in (("send", found.links.send), ("move", found.links.move)):
        points = ", ".join(f"{units.write(nbytes, units.BYTES)} {seconds(time)}" for nbytes, time in curve.points)
        yield name, f"{seconds(curve.link.latency)} and {rate(curve.link.bandwidth)}"
        yield f"{name}, by size", points


def _ranges(numbers: tuple[int, ...]) -> str:
    """0-3,6 for 0, 1, 2, 3, 6."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def cluster_file(facts: Facts, measured: MachineSpeed) -> str:
    """This machine as TOML: one worker per physical core, memory by its control group, speeds with three digits."""
    memory = min(facts.memory.total, facts.control_group.memory or facts.memory.total)
    sent = measured.links.send.link
    host = Host(
        name=re.sub(r"[^\w.-]", "-", facts.host) or "host",
        cores=facts.processor.physical,
        workers=facts.processor.physical,
        memory=memory - memory % 10**6 or memory,
        flops=rounded(measured.products),
        memory_bandwidth=rounded(max(measured.copy, measured.copy_all)),
    )
    return f"{Cluster((host,), within=Link(rounded(sent.latency), rounded(sent.bandwidth)))}{TO_FILL_IN}"
