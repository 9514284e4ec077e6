"""Costs of a job's actions on hosts that are only described: a roofline from FLOPs and bytes, nothing is run.

    seconds of a piece = max(FLOPs / FLOP/s of a worker's cores, bytes / its share of the memory bandwidth) + CALL

    alone       a worker has the host's memory bandwidth for itself
    together    all workers of the host share it, and its cores where they are fewer than their threads

Roofline: Williams, Waterman, Patterson 2009. Every cost is continuous, and never grows with flops or bandwidth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from samestep.errors import ClusterRefused
from samestep.plan.cluster import Cluster, Link
from samestep.plan.machine import Host
from samestep.plan.plan import equal_shares
from samestep.planner.cost.chain import Chain, SliceableRegion, Unit
from samestep.planner.cost.measured_costs import MeasuredCosts, Pair, Passing, Table

FLOPS = 2.0  # of a multiplication in a product: it and the addition
COPIED = 2.0  # bytes moved to copy one: it is read and written; bandwidth is given in bytes copied
WIDEST = 4.0  # bytes of a weight, at most, read for a multiplication
CALL = 10e-6  # seconds of a PyTorch call from Python, forward or backward: dispatch and autograd's records
ACTION = 20e-6  # seconds of an action in the executor: Python between calls, and entering a segment
REDUCED = 1.0  # bytes moved per byte and summand of a reduction: it is read; sums stay in a cache
ADDED = 3.0  # per byte added to another shard's gradient: two are read, one is written
UPDATED = 3.0  # per byte of parameters: gradient and value are read, the value is written
STATE = 2.0  # per byte of optimizer state: read and written


@dataclass(frozen=True)
class Share:
    """One worker's share of its host: FLOP/s, and bytes/s that it reads or writes."""

    flops: float
    bandwidth: float

    def seconds(self, flops: float, nbytes: float) -> float:
        return max(flops / self.flops, nbytes / self.bandwidth)


def is_described(cluster: Cluster) -> bool:
    """Whether every host has its FLOP/s and its memory bandwidth."""
    return all(host.flops is not None and host.memory_bandwidth is not None for host in cluster.hosts)


def roofline_costs(chain: Chain, cluster: Cluster, threads: int = 1, *, clips: bool = False) -> MeasuredCosts:
    """Costs on the first host of a cluster; `with_roofline_speeds` gives the other hosts' speeds relative to it.

    threads: of each worker. clips: whether the job clips gradients, one meeting more. Raises ClusterRefused for a
    host without flops or memory_bandwidth.
    """
    host = cluster.hosts[0]
    most = max(other.workers for other in cluster.hosts)
    alone = _table(chain, share_of(host, threads, 1), 1, _meeting(cluster), clips)
    together = _table(chain, share_of(host, threads, most), most, _meeting(cluster), clips) if most > 1 else alone
    return MeasuredCosts(alone, together, _passing(cluster))


def with_roofline_speeds(chain: Chain, cluster: Cluster, threads: int = 1) -> Cluster:
    """The cluster with the speeds of all workers relative to its first host."""
    if len({(host.flops, host.memory_bandwidth, host.cores) for host in cluster.hosts}) == 1:
        return cluster
    first = _pass_seconds(chain, cluster.hosts[0], threads)

    def faster(host: Host) -> Host:
        ratio = first / _pass_seconds(chain, host, threads)
        return replace(host, speeds=tuple(ratio * speed for speed in host.speeds or (1.0,) * host.workers))

    return replace(cluster, hosts=tuple(map(faster, cluster.hosts)))


def share_of(host: Host, threads: int, workers: int) -> Share:
    """Share of one of `workers` that compute at once. Raises ClusterRefused for a host without flops or bandwidth."""
    if host.flops is None or host.memory_bandwidth is None:
        missing = "flops" if host.flops is None else "memory_bandwidth"
        raise ClusterRefused(
            f"host {host.name} has no {missing}, and nothing can be profiled on a host that is only described: write "
            f'flops = "40 GFLOP/s" and memory_bandwidth = "20 GB/s" (`samestep doctor` measures both), or leave '
            "--described out, and this machine is profiled"
        )
    cores = min(threads, host.cores / workers)
    return Share(host.flops * cores, COPIED * host.memory_bandwidth / workers)


def _pass_seconds(chain: Chain, host: Host, threads: int) -> float:
    """Seconds of a shard's forward and backward while all workers of a host compute."""
    whole = _table(chain, share_of(host, threads, host.workers), host.workers, 0.0, False).whole
    return whole.forward + whole.backward


def _table(chain: Chain, share: Share, workers: int, meeting: float, clips: bool) -> Table:
    pieces = [_unit(unit, share) for unit in chain.units]
    slices = tuple(equal_shares(region.slices, workers)[0] for region in chain.regions)
    byte = 1 / share.bandwidth
    return Table(
        workers,
        Pair(ACTION + sum(p.forward for p in pieces), ACTION + sum(p.backward for p in pieces)),
        tuple(Pair(ACTION + p.forward, ACTION + p.backward) for p in pieces),
        tuple(_region(chain, region, own, share) for region, own in zip(chain.regions, slices, strict=True)),
        slices,
        tuple(_rest(chain, region, share) for region in chain.regions),
        load=ACTION,
        add=ADDED * byte,
        agree=meeting,
        merge=ACTION,
        clip=meeting if clips else 0.0,
        publish=meeting,
        reduce=REDUCED * byte,
        update=(UPDATED + STATE * chain.state) * byte,
        gap=ACTION,
        skew=0.0,  # unknown for a described host: how uneven equal work turns out, and how far times spread
        spread=0.0,
    )


def _unit(unit: Unit, share: Share) -> Pair:
    """Forward reads weights and input and writes what it keeps. Backward makes two products of the same size, for
    the weights and for the input; the second one only where the input needs a gradient."""
    products = 2.0 if unit.crossing_back else 1.0
    written = max(unit.keeps, unit.makes)
    read = min(unit.parameters, WIDEST * unit.work)  # an embedding reads only the rows of its output
    forward = share.seconds(FLOPS * unit.work, read + unit.crossing + written)
    backward = share.seconds(
        products * FLOPS * unit.work, read + unit.parameters + unit.crossing + unit.crossing_back + written
    )
    return Pair(CALL + forward, CALL + backward)


def _region(chain: Chain, region: SliceableRegion, own: int, share: Share) -> Pair:
    """Seconds of a set of all shards through a worker's slices."""
    part = own / region.slices
    work = FLOPS * chain.shards * sum(chain.units[i].work for i in region.units) * part
    outside = chain.shards * (region.takes + region.makes * (1.0 if region.is_summed else part))
    inside = chain.shards * part * sum(chain.units[i].makes for i in region.units[:-1])
    nbytes = region.parameters * part + outside + inside
    calls = own * len(region.layers) * CALL  # every slice is a product of its own
    products = 2.0 if region.gives_gradient else 1.0
    return Pair(
        ACTION + calls + share.seconds(work, nbytes),
        ACTION + calls + share.seconds(products * work, nbytes + region.parameters * part + outside),
    )


def _rest(chain: Chain, region: SliceableRegion, share: Share) -> Pair:
    """Seconds of a shard through the calls after the last layer of a unit, which read and write that layer's output."""
    seconds = CALL + 2 * chain.units[region.units[-1]].makes / share.bandwidth
    return Pair(seconds, seconds)


def _meeting(cluster: Cluster) -> float:
    """Seconds until all workers have heard from all others: there and back over the slowest kind of link."""
    return 2 * max((link.latency for link in _links(cluster)), default=0.0)


def _passing(cluster: Cluster) -> Passing:
    """Costs of the link within a host, half on either side."""
    link = cluster.within
    if link is None:
        return Passing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    half, half_byte = link.latency / 2, 1 / link.bandwidth / 2
    return Passing(half, half_byte, half, half_byte, 0.0, 0.0)


def _links(cluster: Cluster) -> Sequence[Link]:
    found = [cluster.within, cluster.between, *(link for _, _, link in cluster.links)]
    return [link for link in found if link is not None]
