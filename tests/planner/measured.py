"""Chains, costs and clusters for the planner's tests, drawn at random; and the jobs of jobs/grids.py, laid out."""

import dataclasses
from functools import cache
from typing import Any

from hypothesis import strategies as st

from jobs import grids
from samestep.job.job import Job
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import chosen_numerics, make_plan, with_numerics
from samestep.numerics import random_streams
from samestep.parallel.gradients.job_optimizer import implementation
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Host, Link
from samestep.plan.plan import Plan, equal_shares
from samestep.planner.cost.chain import Chain, SliceableRegion, Unit
from samestep.planner.cost.measured_costs import MeasuredCosts, Pair, Passing, Table
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.network_measurements import survey
from samestep.setup.parallelize import divide, prepare

FAMILIES = ("mlp", "cnn", "gpt", "resnet", "embedding", "encoder")
PLANS = ("data", "slices", "hybrid", "pipeline")
seconds = st.floats(1e-4, 1e-2)
pairs = st.builds(Pair, seconds, seconds)


@st.composite
def chains(draw: st.DrawFn, least: int = 1, most: int = 5, slices: int = 4) -> Chain:
    """Regions are single layers or neighbours, each kind of its own."""
    count = draw(st.integers(least, most))
    nbytes = st.integers(1, 1000).map(lambda n: 4 * n)
    units = tuple(
        Unit(f"layer{i}", f"Linear {i}", draw(nbytes), 2, i and draw(nbytes), i and draw(nbytes), 8, draw(nbytes), 1.0)
        for i in range(count)
    )
    regions, at = [], 0
    while at < count:
        size = draw(st.integers(0, min(2, count - at)))
        if size:
            own = tuple(range(at, at + size))
            parameters = sum(units[i].parameters for i in own) // 2
            names = tuple(units[i].name for i in own)
            regions.append(SliceableRegion(names, own, slices, parameters, 64, 32, size == 2, at > 0))
        at += max(1, size)
    shards = draw(st.integers(2, 8))
    return Chain(units, tuple(regions), {}, None, shards, 8 * shards, 1.0, is_elementwise=True)


@st.composite
def tables(draw: st.DrawFn, chain: Chain, workers: int) -> Table:
    units = tuple(draw(pairs) for _ in chain.units)
    whole = Pair(sum(u.forward for u in units) * 0.9, sum(u.backward for u in units) * 0.9)
    small = st.floats(0, 1e-4)
    scalars = [draw(small) for _ in range(10)]
    return Table(
        workers, whole, units, tuple(draw(pairs) for _ in chain.regions),
        tuple(equal_shares(region.slices, workers)[0] for region in chain.regions),
        tuple(draw(pairs) for _ in chain.regions), scalars[0], scalars[1] * 1e-6, *scalars[2:6], scalars[6] * 1e-6,
        scalars[7] * 1e-6, scalars[8], scalars[9], 0.01,
    )  # fmt: skip


@st.composite
def costs_of(draw: st.DrawFn, chain: Chain, workers: int = 2) -> MeasuredCosts:
    together = draw(tables(chain, workers))
    return MeasuredCosts(draw(tables(chain, 1)), together, Passing(1e-5, 1e-10, 1e-5, 1e-10, 0.0, 0.0))


def cluster_of(*workers: int, bandwidth: float = 1e8, latency: float = 1e-4) -> Cluster:
    """So many workers on each host."""
    hosts = tuple(Host(f"host{number}", count, count, 1 << 30) for number, count in enumerate(workers))
    return Cluster(hosts, within=Link(1e-5, 1e9), between=Link(latency, bandwidth) if len(hosts) > 1 else None)


def plainly(chain: Chain, workers: int = 2) -> MeasuredCosts:
    """Every unit takes 1 ms and 2 ms, whatever it is."""

    def table(count: int) -> Table:
        units = (Pair(1e-3, 2e-3),) * len(chain.units)
        regions = (Pair(4e-3 / count, 8e-3 / count),) * len(chain.regions)
        own = tuple(equal_shares(region.slices, count)[0] for region in chain.regions)
        whole = Pair(1e-3 * len(units), 2e-3 * len(units))
        rests = (Pair(1e-4, 1e-4),) * len(regions)
        return Table(count, whole, units, regions, own, rests, *(1e-5, 1e-10, 1e-5, 1e-5, 0.0, 1e-5, 1e-10, 1e-10),
                     1e-5, 0.0, 0.01)  # fmt: skip

    return MeasuredCosts(table(1), table(workers), Passing(1e-5, 1e-10, 1e-5, 1e-10, 0.0, 0.0))


@dataclasses.dataclass(frozen=True)
class Laid:
    """A family of jobs/grids.py with one of the presets, as the executor gets it; and its chain."""

    job: Job
    plan: Plan
    prepared: LaidOutModel
    chain: Chain


@cache
def surveyed(family: str) -> Chain:
    job = getattr(grids, family)()
    job = dataclasses.replace(job, shards=job.resolved_shards())
    return survey(job, prepare(job, fresh(job)), 4)


@cache
def laid(family: str, preset: str, workers: int = 4, **fields: Any) -> Laid:
    request = Request.of(run="test", plan=preset, workers=workers, default_workers=workers)
    chosen = chosen_numerics(request)
    job = with_numerics(dataclasses.replace(getattr(grids, family)(), **fields), chosen, request)
    model = fresh(job)
    prepared = prepare(job, model)
    plan = make_plan(job, chosen, request, implementation(prepared.optimizer), model)
    return Laid(job, plan, divide(job, plan, prepared), surveyed(family))


def fresh(job: Job) -> Any:
    random_streams.enter(job.seed, "model")
    return job.build_model()
