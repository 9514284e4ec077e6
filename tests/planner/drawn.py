"""Chains and clusters that nobody has."""

from hypothesis import strategies as st

from samestep.plan.cluster import Cluster, Link
from samestep.plan.machine import Host
from samestep.planner.cost.chain import Chain, SliceableRegion, Unit

SIZES = st.integers(1, 10**8)


def unit(number: int, parameters: int, crossing: int, work: float) -> Unit:
    cut = crossing if number else 0
    return Unit(f"l{number}", f"Linear {parameters}", parameters, 2, cut, cut, 2 * crossing, crossing, work)


def pair_of(units: tuple[Unit, ...], first: int, slices: int = 4) -> SliceableRegion:
    two = units[first : first + 2]
    nbytes, moved = sum(u.parameters for u in two), two[0].makes
    return SliceableRegion(
        (two[0].name, two[1].name), (first, first + 1), slices, nbytes, moved, moved, True, first > 0
    )


@st.composite
def chains(draw: st.DrawFn, most_units: int = 5) -> Chain:
    count, shards = draw(st.integers(2, most_units)), draw(st.integers(1, 8))
    units = tuple(unit(i, draw(SIZES), draw(SIZES), draw(st.floats(1e3, 1e10))) for i in range(count))
    return Chain(
        units, (pair_of(units, count - 2),), {}, None, shards, 8 * shards, draw(st.sampled_from([0.0, 1.0])), True
    )


@st.composite
def clusters(draw: st.DrawFn, least: int = 1, most: int = 6) -> Cluster:
    per_host = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda w: least <= sum(w) <= most))
    flops, memory = draw(st.floats(1e9, 1e12)), draw(st.floats(1e9, 1e12))
    hosts = tuple(Host(f"n{i}", 4, workers, 10**9, (), flops, memory) for i, workers in enumerate(per_host))
    return Cluster(hosts, draw(links()), draw(links()))


@st.composite
def links(draw: st.DrawFn) -> Link:
    return Link(draw(st.floats(0, 1e-3)), draw(st.floats(1e7, 1e11)))


def uniform(workers: int, per_host: int, flops: float = 40e9) -> Cluster:
    """Hosts alike; the last one may have fewer workers."""
    counts = [min(per_host, workers - at) for at in range(0, workers, per_host)]
    hosts = tuple(Host(f"n{i}", 8, count, 10**9, (), flops, 20e9) for i, count in enumerate(counts))
    return Cluster(hosts, Link(1e-5, 5e9), Link(5e-5, 1.25e9))


def even_chain(units: int, shards: int) -> Chain:
    found = tuple(unit(i, 4_000_000 * (1 + i % 5), 262_144, 64e6 * (1 + i % 7)) for i in range(units))
    return Chain(found, (), {}, None, shards, 64 * shards, 1.0, True)
